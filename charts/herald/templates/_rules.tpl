{{/* What the operator does in the namespaces that count. Each rule is one that it uses. */}}
{{- define "herald.operatorRules" -}}
- apiGroups: [herald.dev]
  resources: [channels, notificationtemplates, recipientgroups, schedules]
  verbs: [list, watch]
# What the gateways ask for when they are asked how a Schedule is.
- apiGroups: [herald.dev]
  resources: [schedules]
  verbs: [get]
# Finalizers.
- apiGroups: [herald.dev]
  resources: [channels]
  verbs: [patch]
- apiGroups: [herald.dev]
  resources: [channels/status, notificationtemplates/status, recipientgroups/status, schedules/status]
  verbs: [patch]
{{- if not (include "herald.embedded" .) }}
# The same of a Channel, for its scale and its conditions.
- apiGroups: [herald.dev]
  resources: [channels]
  verbs: [get]
# Where owner references that block deletion are guarded.
- apiGroups: [herald.dev]
  resources: [channels/finalizers]
  verbs: [update]
# What it makes for a Channel. An apply that makes something new is a patch and a create.
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch, delete]
# Also whether those are there that Channels name for certificates.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, delete]
# Whether a Channel's pods are gone.
- apiGroups: [""]
  resources: [pods]
  verbs: [list]
{{- end }}
# Their metadata alone is asked for: whether they are there, and labelled. RBAC knows no such thing.
- apiGroups: [""]
  resources: [secrets]
  verbs: [list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* What it asks of the whole cluster: namespaces' uids and labels. */}}
{{- define "herald.operatorClusterRules" -}}
- apiGroups: [""]
  resources: [namespaces]
  verbs: [list, watch]
{{- if .Values.watchNamespaces }}
# With a namespace that is deleted its RoleBindings go first; its Channels could not be let go, nor it.
- apiGroups: [herald.dev]
  resources: [channels]
  verbs: [list, watch, patch]
{{- end }}
{{- end }}

{{/* What gateways read in the namespaces that count. They write nothing. */}}
{{- define "herald.gatewayRules" -}}
- apiGroups: [herald.dev]
  resources: [channels, notificationtemplates, recipientgroups, schedules]
  verbs: [list, watch]
{{- end }}

{{/* Who calls, and what it may do; namespaces' labels; and the keys to check tokens by while the API server is away. */}}
{{- define "herald.gatewayClusterRules" -}}
- apiGroups: [""]
  resources: [namespaces]
  {{- with .Values.watchNamespaces }}
  resourceNames: {{ toJson . }}
  {{- end }}
  verbs: [list, watch]
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
- nonResourceURLs: [/.well-known/openid-configuration, /openid/v1/jwks]
  verbs: [get]
{{- end }}
