{{/* The settings of the provider aws, where it is on or serves another driver. */}}
{{- define "coffer.awsEnv" -}}
{{- $served := has "aws" (.Values.asProviders | default list) }}
{{- with .Values.providers.aws }}
{{- if or .enabled $served }}
{{- with .region }}
- {name: COFFER_AWS_REGION, value: {{ . | quote }}}
{{- end }}
{{- if .useFipsEndpoint }}
- {name: COFFER_AWS_FIPS, value: "true"}
{{- end }}
{{- with .audiences }}
- {name: COFFER_AWS_AUDIENCE, value: {{ join "," . | quote }}}
{{- end }}
{{- with .endpoints.secretsmanager }}
- {name: COFFER_AWS_ENDPOINT_SECRETSMANAGER, value: {{ . | quote }}}
{{- end }}
{{- with .endpoints.ssm }}
- {name: COFFER_AWS_ENDPOINT_SSM, value: {{ . | quote }}}
{{- end }}
{{- with .endpoints.sts }}
- {name: COFFER_AWS_ENDPOINT_STS, value: {{ . | quote }}}
{{- end }}
{{- with .podIdentity.ipv4 }}
- {name: COFFER_AWS_POD_IDENTITY_IPV4, value: {{ . | quote }}}
{{- end }}
{{- with .podIdentity.ipv6 }}
- {name: COFFER_AWS_POD_IDENTITY_IPV6, value: {{ . | quote }}}
{{- end }}
{{- with .caFile }}
- {name: COFFER_CA_FILE, value: {{ . | quote }}}
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
