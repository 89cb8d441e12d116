{{/* The settings of the providers vault and openbao. The addresses of the node are for them to know it by, whatever a class
calls it; kubelets of 1.29 know all of them, and may be three versions behind the API server. */}}
{{- define "coffer.vaultEnv" -}}
- name: COFFER_NODE_ADDRESSES
  valueFrom: {fieldRef: {fieldPath: {{ semverCompare ">=1.32.0-0" .Capabilities.KubeVersion.Version | ternary "status.hostIPs" "status.hostIP" }}}}
{{- with .Values.providers.vault }}
{{- if .caConfigMap.name }}
- {name: COFFER_VAULT_TLS_CA_CERT, value: /etc/coffer/vault-ca/ca.crt}
{{- end }}
{{- if .versionKeySecret.name }}
- {name: COFFER_VAULT_VERSION_KEY_FILE, value: /etc/coffer/vault-version-key/key}
{{- end }}
{{- end }}
{{- end -}}

{{/* Where the container has the files that these name. */}}
{{- define "coffer.vaultMounts" -}}
{{- with .Values.providers.vault }}
{{- if .caConfigMap.name }}
- {name: vault-ca, mountPath: /etc/coffer/vault-ca, readOnly: true}
{{- end }}
{{- if .versionKeySecret.name }}
- {name: vault-version-key, mountPath: /etc/coffer/vault-version-key, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{/* And where they come from. */}}
{{- define "coffer.vaultVolumes" -}}
{{- with .Values.providers.vault.caConfigMap }}
{{- if .name }}
- name: vault-ca
  configMap: {name: {{ .name | quote }}, defaultMode: 0400, items: [{key: {{ .key | quote }}, path: ca.crt}]}
{{- end }}
{{- end }}
{{- with .Values.providers.vault.versionKeySecret }}
{{- if .name }}
- name: vault-version-key
  secret: {secretName: {{ .name | quote }}, defaultMode: 0400, items: [{key: {{ .key | quote }}, path: key}]}
{{- end }}
{{- end }}
{{- end -}}
