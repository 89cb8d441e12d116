{{/* The flags of the provider aws, where it is on. */}}
{{- define "coffer.awsArgs" -}}
{{- with .Values.providers.aws }}
{{- if .enabled }}
{{- with .region }}
- --aws-region={{ . }}
{{- end }}
{{- if .useFipsEndpoint }}
- --aws-fips
{{- end }}
{{- range .audiences }}
- {{ printf "--aws-audience=%s" . | quote }}
{{- end }}
{{- with .endpoints.secretsmanager }}
- {{ printf "--aws-endpoint-secretsmanager=%s" . | quote }}
{{- end }}
{{- with .endpoints.ssm }}
- {{ printf "--aws-endpoint-ssm=%s" . | quote }}
{{- end }}
{{- with .endpoints.sts }}
- {{ printf "--aws-endpoint-sts=%s" . | quote }}
{{- end }}
{{- with .podIdentity.ipv4 }}
- {{ printf "--aws-pod-identity-ipv4=%s" . | quote }}
{{- end }}
{{- with .podIdentity.ipv6 }}
- {{ printf "--aws-pod-identity-ipv6=%s" . | quote }}
{{- end }}
{{- with .caFile }}
- --ca-file={{ . }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What classes of aws need to know of the cluster. */}}
{{- define "coffer.awsRules" -}}
# The role in the annotation of a pod's ServiceAccount.
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch]
# The region in the label of the driver's own node.
- apiGroups: [""]
  resources: [nodes]
  verbs: [get]
{{- end -}}
