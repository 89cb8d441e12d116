{{/* Where the kubelet puts tokens. Without tokenRequests it brings none, and what is in the volume context then can only
have been written by the pod's author: `secrets` believes none of that. */}}
{{- define "coffer.tokenSource" -}}
{{- $old := semverCompare "<1.35.0-0" .Capabilities.KubeVersion.Version -}}
{{- if not .Values.tokenRequests -}}
secrets
{{- else if .Values.tokenSource -}}
{{- if and $old (eq .Values.tokenSource "secrets") -}}
{{- fail (printf "tokenSource: Kubernetes %s cannot put tokens into secrets; leave it empty" .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{ .Values.tokenSource }}
{{- else -}}
{{ $old | ternary "context" "secrets" }}
{{- end -}}
{{- end -}}

{{/* tokenRequests as a list; an audience that is there twice the API server would refuse without naming the value. */}}
{{- define "coffer.tokenRequests" -}}
{{- $audiences := dict -}}
{{- range .Values.tokenRequests -}}
{{- if and (not .audience) (not $.Values.allowEmptyAudience) -}}
{{- fail "tokenRequests: an empty audience asks for tokens that are good at the API server; if that is meant, set allowEmptyAudience" -}}
{{- end -}}
{{- if hasKey $audiences .audience -}}
{{- fail (printf "tokenRequests: the audience %q is there twice" .audience) -}}
{{- end -}}
{{- $_ := set $audiences .audience true -}}
{{- end -}}
{{- range .Values.tokenRequests }}
- audience: {{ .audience | quote }}
{{- with .expirationSeconds }}
  expirationSeconds: {{ int64 . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* A quantity such as 64Mi in bytes. */}}
{{- define "coffer.bytes" -}}
{{- $text := kindIs "string" . | ternary . (. | int64 | toString) -}}
{{- $number := regexFind "^[0-9.]+" $text -}}
{{- $units := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "T" 1000000000000 "Ti" 1099511627776 -}}
{{- mulf (float64 $number) (get $units (trimPrefix $number $text)) | int64 -}}
{{- end -}}

{{/* What the driver may need: itself, and all volumes twice, since the files that were written before a restart stay
charged to it while they are written anew. */}}
{{- define "coffer.memoryLimit" -}}
{{- $own := include "coffer.bytes" .Values.linux.driver.ownMemory | int64 -}}
{{- $budget := include "coffer.bytes" .Values.nodeBudget | int64 -}}
{{- $limit := add $own (mul 2 $budget) -}}
{{- printf "%dMi" (div $limit 1048576) -}}
{{- end -}}

{{- define "coffer.resources" -}}
{{- $limit := include "coffer.memoryLimit" . -}}
{{- $resources := deepCopy (.Values.linux.driver.resources | default dict) -}}
{{- $given := dig "limits" "memory" "" $resources -}}
{{- if $given -}}
{{- if lt (include "coffer.bytes" $given | int64) (include "coffer.bytes" $limit | int64) -}}
{{- fail (printf "linux.driver.resources.limits.memory: %v is less than %s, which is linux.driver.ownMemory + 2 × nodeBudget; leave it out, or lower nodeBudget" $given $limit) -}}
{{- end -}}
{{- $limit = $given -}}
{{- end -}}
{{- $_ := set $resources "limits" (merge (dict "memory" $limit) (dig "limits" (dict) $resources)) -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Whether the driver is installed, and not only providers for another one. */}}
{{- define "coffer.isDriver" -}}
{{- if not .Values.asProviders }}true{{ end -}}
{{- end -}}

{{/* Every folder of sockets, in the order in which they are searched. */}}
{{- define "coffer.providersDirs" -}}
{{- append (.Values.linux.additionalProvidersDirs | default list) .Values.linux.providersDir | uniq | toYaml -}}
{{- end -}}

{{/* Values of upstream's chart that were given and change nothing, one a line. */}}
{{- define "coffer.unused" -}}
{{- range $key := list "windows" "logVerbosity" "livenessProbe" "enableSecretRotation" "automountServiceAccountToken" }}
{{- if hasKey $.Values $key }}
{{ $key }}
{{- end }}
{{- end }}
{{- range $key := list "livenessProbeImage" "livenessProbe" }}
{{- if hasKey $.Values.linux $key }}
linux.{{ $key }}
{{- end }}
{{- end }}
{{- range $key, $_ := omit (.Values.linux.crds | default dict) "enabled" }}
linux.crds.{{ $key }}
{{- end }}
{{- if hasKey .Values.rbac "pspEnabled" }}
rbac.pspEnabled
{{- end }}
{{- end -}}
