{{/* The operator's settings, as environment variables: a change of any is a change of the Deployment. */}}
{{- define "herald.operatorEnv" -}}
{{- $fullname := include "herald.fullname" . -}}
- name: HERALD_LOG
  value: {{ .Values.logLevel | quote }}
{{- with .Values.traces.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
- name: HERALD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: HERALD_POD
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: HERALD_BROKER
  value: {{ .Values.broker }}
{{- with .Values.watchNamespaces }}
- name: HERALD_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
- name: HERALD_GATEWAY_URL
  value: http://{{ $fullname }}-gateway.{{ .Release.Namespace }}.svc:{{ .Values.gateway.service.port }}
- name: HERALD_GATEWAY_TOKEN_FILE
  value: /var/run/secrets/herald.dev/gateway/token
- name: HERALD_HORIZON_SECONDS
  value: {{ .Values.horizonSeconds | quote }}
{{- if not (include "herald.embedded" .) }}
{{ include "herald.pulsarAddress" (dict "root" . "variable" "HERALD_PULSAR_ADMIN_URL" "value" .Values.pulsar.adminUrl "key" .Values.pulsar.adminUrlKey "setting" "pulsar.adminUrl") }}
{{ include "herald.pulsarAddress" (dict "root" . "variable" "HERALD_PULSAR_URL" "value" .Values.pulsar.url "key" .Values.pulsar.urlKey "setting" "pulsar.url") }}
- name: HERALD_PULSAR_TENANT
  value: {{ .Values.pulsar.tenant | quote }}
- name: HERALD_REQUEST_PARTITIONS
  value: {{ .Values.pulsar.requestPartitions | quote }}
{{- if .Values.pulsar.operatorToken.existingSecret }}
- name: HERALD_PULSAR_TOKEN_FILE
  value: /etc/herald/pulsar-token/token
{{- end }}
{{- if .Values.pulsar.ca.existingSecret }}
- name: HERALD_PULSAR_CA_FILE
  value: /etc/herald/pulsar-ca/ca.crt
{{- end }}
{{- with .Values.pulsar.gatewayRole }}
- name: HERALD_PULSAR_GATEWAY_ROLE
  value: {{ . | quote }}
{{- end }}
- name: HERALD_PULSAR_POD_AUTH
  value: {{ .Values.pulsar.pods.auth | default (ternary "serviceAccount" "none" (not (empty .Values.pulsar.gatewayToken.existingSecret))) }}
{{- if eq .Values.pulsar.pods.auth "secret" }}
- name: HERALD_PULSAR_POD_SECRET
  value: {{ .Values.pulsar.pods.secret | quote }}
{{- end }}
{{- with .Values.pulsar.pods.role }}
- name: HERALD_PULSAR_POD_ROLE
  value: {{ . | quote }}
{{- end }}
- name: HERALD_IMAGE
  value: {{ include "herald.image" . }}
- name: HERALD_IMAGE_PULL_POLICY
  value: {{ .Values.image.pullPolicy }}
- name: HERALD_POD_LOG
  value: {{ .Values.logLevel | quote }}
- name: HERALD_WINDOW
  value: {{ .Values.window | quote }}
- name: HERALD_DRAIN_SECONDS
  value: {{ .Values.deliver.drainSeconds | quote }}
- name: HERALD_ALLOW_PRIVATE_ADDRESSES
  value: {{ .Values.allowPrivateAddresses | quote }}
{{- end }}
{{- end }}
