{{/* What objects are called before their component: the release's name, or fullnameOverride. */}}
{{- define "herald.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $release := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $fullname := .Values.fullnameOverride | default $release | trunc 40 | trimSuffix "-" -}}
{{/* Releases may be called what Services may not. */}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $fullname) -}}
{{- fail (printf "objects cannot be called %q: give fullnameOverride, lower-case letters, digits and -, with a letter first" $fullname) -}}
{{- end -}}
{{- $fullname -}}
{{- end }}

{{/* Labels that select a component's pods. Called with a dict: root, component. */}}
{{- define "herald.selectorLabels" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of every object. Called with a dict: root, component, and further labels, which stand over the common ones. */}}
{{- define "herald.labels" -}}
{{ include "herald.selectorLabels" . }}
app.kubernetes.io/part-of: herald
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with merge (dict) (.further | default dict) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels of pods: nothing that a chart's new version alone would change. Called with a dict: root, component. */}}
{{- define "herald.podLabels" -}}
{{ include "herald.selectorLabels" . }}
app.kubernetes.io/part-of: herald
{{- with merge (dict) ((get .root.Values .component | default dict).podLabels | default dict) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The image: by digest if there is one. A name without a registry would be asked of a public one, where it is not ours. */}}
{{- define "herald.image" -}}
{{- $registry := .Values.image.registry | default .Values.global.imageRegistry -}}
{{- if not (or $registry (contains "/" .Values.image.repository)) -}}
{{- fail "image.registry is needed: where the image of this version was pushed to" -}}
{{- end -}}
{{- $name := ternary (printf "%s/%s" $registry .Values.image.repository) .Values.image.repository (ne $registry "") -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end }}

{{/* Names of Secrets to pull with, as a list of names in JSON. */}}
{{- define "herald.pullSecretNames" -}}
{{- concat (default (list) .Values.global.imagePullSecrets) .Values.imagePullSecrets | uniq | toJson -}}
{{- end }}

{{/* Whom pods are and how they may be pulled. Called with a dict: root, account. */}}
{{- define "herald.identity" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: true
{{- with include "herald.pullSecretNames" .root | fromJsonArray }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
securityContext:
  {{- include "herald.podSecurityContext" .root | nindent 2 }}
{{- end }}

{{/* The service account of a component. Called with a dict: root, component. */}}
{{- define "herald.serviceAccountName" -}}
{{- $account := (index .root.Values .component).serviceAccount -}}
{{- if $account.create -}}
{{- default (printf "%s-%s" (include "herald.fullname" .root) .component) $account.name -}}
{{- else -}}
{{- required (printf "%s.serviceAccount.name is needed with %s.serviceAccount.create: false" .component .component) $account.name -}}
{{- end -}}
{{- end }}

{{/* What makes a pod one that the restricted Pod Security Standard lets in. */}}
{{- define "herald.podSecurityContext" -}}
runAsNonRoot: true
{{- range $field, $id := .Values.podSecurityContext }}
{{- if not (kindIs "invalid" $id) }}
{{ $field }}: {{ int64 $id }}
{{- end }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "herald.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* On which nodes a component's pods may be. Called with a dict: root, component. */}}
{{- define "herald.nodes" -}}
{{- $values := index .root.Values .component -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where a component's pods go. Called with a dict: root, component. */}}
{{- define "herald.placement" -}}
{{- $values := index .root.Values .component -}}
{{ include "herald.nodes" . }}
{{- if $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml $values.topologySpreadConstraints | nindent 2 }}
{{- else }}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- topologyKey: {{ . }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "herald.selectorLabels" $ | nindent 6 }}
{{- end }}
{{- end }}
{{- end }}

{{/* The port of where traces go. */}}
{{- define "herald.tracesPort" -}}
{{- $url := urlParse .Values.traces.otlpEndpoint -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end }}

{{/* Whether everything is in one pod. */}}
{{- define "herald.embedded" -}}
{{- if eq .Values.broker "embedded" }}true{{ end -}}
{{- end }}

{{/* The Secret with the key that signs links. */}}
{{- define "herald.linkSecret" -}}
{{- default (printf "%s-link-signing-key" (include "herald.fullname" .)) .Values.linkSigningKey.existingSecret -}}
{{- end }}

{{/* An environment variable with one of Pulsar's addresses: given, or from the Secret.
     Called with a dict: root, variable, value, key, setting. */}}
{{- define "herald.pulsarAddress" -}}
- name: {{ .variable }}
{{- if .value }}
  value: {{ .value | quote }}
{{- else }}
  valueFrom:
    secretKeyRef:
      name: {{ required (printf "%s or pulsar.existingSecret is needed with broker: pulsar; to look around without: --values values-dev.yaml" .setting) .root.Values.pulsar.existingSecret }}
      key: {{ .key }}
{{- end }}
{{- end }}

{{/* The port with health and metrics: one process that is everything serves them beside the API. */}}
{{- define "herald.gatewayProbes" -}}
{{- if include "herald.embedded" . }}http{{ else }}metrics{{ end -}}
{{- end }}
