{{/* The settings of the driver. They are in its environment, and not among its arguments, so that what is run beside it by
`kubectl exec`, as `coffer doctor`, has the same ones. */}}
{{- define "coffer.driverEnv" -}}
{{ include "coffer.nodeEnv" . }}
- {name: CSI_ENDPOINT, value: "unix:///csi/csi.sock"}
- {name: COFFER_DRIVER_NAME, value: {{ .Values.driverName | quote }}}
- {name: COFFER_KUBELET_ROOT, value: {{ .Values.linux.kubeletRootDir | quote }}}
- {name: COFFER_TOKEN_SOURCE, value: {{ include "coffer.tokenSource" . | quote }}}
- {name: COFFER_METRICS_ADDR, value: {{ .Values.linux.metricsAddr | quote }}}
- {name: COFFER_NODE_BUDGET, value: {{ .Values.nodeBudget | quote }}}
{{- with .Values.rotationPollInterval }}
- {name: COFFER_ROTATION_INTERVAL, value: {{ . | quote }}}
{{- end }}
{{- if .Values.linux.removeStartupTaint }}
- {name: COFFER_REMOVE_STARTUP_TAINT, value: "true"}
{{- end }}
- {name: COFFER_PROVIDER_VOLUME, value: {{ .Values.linux.providersDir | quote }}}
- {name: COFFER_ADDITIONAL_PROVIDER_VOLUME_PATHS, value: {{ join "," .Values.linux.additionalProvidersDirs | quote }}}
- {name: COFFER_MAX_CALL_RECV_MSG_SIZE, value: {{ int64 .Values.maxCallRecvMsgSize | quote }}}
{{- with .Values.plugins.uids }}
- {name: COFFER_PLUGIN_UIDS, value: "{{ range $index, $uid := . }}{{ if $index }},{{ end }}{{ int64 $uid }}{{ end }}"}
{{- end }}
{{- with .Values.plugins.preferred }}
- {name: COFFER_PREFER_PLUGIN, value: {{ join "," . | quote }}}
{{- end }}
{{- $audiences := list }}
{{- range $name, $of := .Values.plugins.audiences }}
{{- range $of }}
{{- $audiences = append $audiences (printf "%s=%s" $name .) }}
{{- end }}
{{- end }}
{{- with $audiences }}
- {name: COFFER_PLUGIN_AUDIENCE, value: {{ join "," . | quote }}}
{{- end }}
{{- with .Values.plugins.legacyWriters }}
- {name: COFFER_LEGACY_PLUGIN_WRITES, value: {{ join "," . | quote }}}
{{- end }}
{{- if .Values.providerHealthCheck }}
- {name: COFFER_PROVIDER_HEALTH_CHECK, value: "true"}
- {name: COFFER_PROVIDER_HEALTH_CHECK_INTERVAL, value: {{ .Values.providerHealthCheckInterval | quote }}}
{{- end }}
{{- if .Values.clusterKey.create }}
- {name: COFFER_CLUSTER_KEY_FILE, value: /etc/coffer/cluster-key/key}
{{- end }}
- {name: COFFER_LOG_LEVEL, value: {{ .Values.logLevel | quote }}}
- {name: COFFER_LOG_FORMAT, value: {{ ternary "json" "text" .Values.logFormatJSON }}}
{{- if .Values.syncSecret.enabled }}
- {name: COFFER_SYNC_SECRETS, value: "true"}
{{- if .Values.syncSecret.bootstrapTokens }}
- {name: COFFER_SYNC_BOOTSTRAP_TOKENS, value: "true"}
{{- end }}
{{- end }}
{{- if .Values.providers.file.enabled }}
- {name: COFFER_FILE_ROOT, value: {{ .Values.providers.file.root | quote }}}
{{- end }}
{{ include "coffer.awsEnv" . }}
{{ include "coffer.vaultEnv" . }}
{{- end -}}

{{/* The node's name. */}}
{{- define "coffer.nodeEnv" -}}
- name: COFFER_NODE_ID
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end -}}

{{/* Takes variables of the chart's own and gives them with those of linux.env behind them. One that linux.env has too is
left out: the last of two would count, but the API server refuses both where helm applies on its side. */}}
{{- define "coffer.env" -}}
{{- $given := (index . 0).Values.linux.env | default list -}}
{{- $names := list -}}
{{- range $given }}{{ $names = append $names .name }}{{ end -}}
{{- $env := list -}}
{{- range index . 1 | fromYamlArray }}
{{- if not (has .name $names) }}{{ $env = append $env . }}{{ end }}
{{- end -}}
{{- concat $env $given | toYaml -}}
{{- end -}}
