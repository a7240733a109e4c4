//! What a container is given: environment and volumes, each in all its forms.

use anyhow::ensure;
use yare_testkit::{Cluster, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const IMAGE: &str = "yare.local/busybox:1";

const OBJECTS: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: config}
data: {color: blue, shape: round, not-an-identifier: x}
binaryData: {raw: AAEC}
---
apiVersion: v1
kind: Secret
metadata: {name: secret}
stringData: {password: hunter2, user: ada}
---
apiVersion: v1
kind: Pod
metadata:
  name: env
  labels: {app: env}
  annotations: {note: "a note"}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "exec sleep 1000"]
    resources: {limits: {cpu: 500m, memory: 64Mi}, requests: {cpu: 100m}}
    envFrom:
    - configMapRef: {name: config}
    - secretRef: {name: secret}
      prefix: SECRET_
    - configMapRef: {name: absent, optional: true}
    env:
    - {name: PLAIN, value: plain}
    - {name: EXPANDED, value: "$(PLAIN)-$(color)"}
    - {name: ESCAPED, value: "$$(PLAIN)"}
    - {name: UNKNOWN, value: "$(NO_SUCH)"}
    - name: shape
      value: square
    - name: FROM_CONFIG
      valueFrom: {configMapKeyRef: {name: config, key: color}}
    - name: FROM_SECRET
      valueFrom: {secretKeyRef: {name: secret, key: password}}
    - name: ABSENT
      valueFrom: {configMapKeyRef: {name: config, key: absent, optional: true}}
    - name: POD
      valueFrom: {fieldRef: {fieldPath: metadata.name}}
    - name: LABEL
      valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}
    - name: NOTE
      valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}
    - name: NODE
      valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
    - name: ACCOUNT
      valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}
    - name: IP
      valueFrom: {fieldRef: {fieldPath: status.podIP}}
    - name: HOST_IP
      valueFrom: {fieldRef: {fieldPath: status.hostIP}}
    - name: LIMIT_CPU
      valueFrom: {resourceFieldRef: {resource: limits.cpu}}
    - name: REQUEST_CPU
      valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}
    - name: LIMIT_MEMORY
      valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}
---
apiVersion: v1
kind: Pod
metadata:
  name: volumes
  labels: {app: volumes, tier: "1"}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {fsGroup: 1234}
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "exec sleep 1000"]
    resources: {limits: {memory: 64Mi}}
    volumeMounts:
    - {name: config, mountPath: /config}
    - {name: config, mountPath: /one, subPath: color}
    - {name: secret, mountPath: /secret, readOnly: true}
    - {name: empty, mountPath: /empty}
    - {name: memory, mountPath: /memory}
    - {name: host, mountPath: /host}
    - {name: file, mountPath: /file}
    - {name: down, mountPath: /down}
    - {name: all, mountPath: /all}
    - {name: host, mountPath: /deep, readOnly: true, recursiveReadOnly: Enabled}
  - name: other
    image: yare.local/busybox:1
    command: [sh, -c, "echo shared >/empty/from-other; exec sleep 1000"]
    volumeMounts:
    - {name: empty, mountPath: /empty}
  volumes:
  - name: config
    configMap: {name: config}
  - name: secret
    secret: {secretName: secret, defaultMode: 0400, items: [{key: password, path: deep/pw}]}
  - name: empty
    emptyDir: {}
  - name: memory
    emptyDir: {medium: Memory, sizeLimit: 1Mi}
  - name: host
    hostPath: {path: DIRECTORY/host, type: DirectoryOrCreate}
  - name: file
    hostPath: {path: DIRECTORY/file, type: File}
  - name: down
    downwardAPI:
      items:
      - {path: labels, fieldRef: {fieldPath: metadata.labels}}
      - {path: memory, resourceFieldRef: {containerName: main, resource: limits.memory}}
  - name: all
    projected:
      sources:
      - configMap: {name: config, items: [{key: shape, path: shape}]}
      - secret: {name: secret}
      - downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}
      - serviceAccountToken: {path: token, audience: somebody, expirationSeconds: 3600}
"#;

/// Pod, shell line, output.
const CASES: &[(&str, &str, &str)] = &[
    ("env", "echo $PLAIN $EXPANDED", "plain plain-blue"),
    ("env", r#"echo "$ESCAPED" "$UNKNOWN""#, "$(PLAIN) $(NO_SUCH)"),
    ("env", "echo $color $shape", "blue square"),
    ("env", "echo $SECRET_password $SECRET_user", "hunter2 ada"),
    ("env", "echo $FROM_CONFIG $FROM_SECRET", "blue hunter2"),
    ("env", "env | grep -c ABSENT || true", "0"),
    ("env", "echo $POD $LABEL $NOTE $NODE $ACCOUNT", "env env a note node-1 default"),
    ("env", "[ $IP = $(hostname -i) ] && echo same", "same"),
    ("env", "echo $LIMIT_CPU $REQUEST_CPU $LIMIT_MEMORY", "1 100 64"),
    ("env", "echo $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT", "10.43.0.1 443"),
    ("env", "hostname", "env"),
    ("volumes", "ls /config", "color\nnot-an-identifier\nraw\nshape"),
    ("volumes", "cat /config/color /one", "blueblue"),
    ("volumes", "od -An -tx1 /config/raw", " 00 01 02"),
    ("volumes", "cat /secret/deep/pw", "hunter2"),
    ("volumes", "touch /secret/x 2>&1 || true", "touch: /secret/x: Read-only file system"),
    ("volumes", "cat /empty/from-other; stat -c %g /empty", "shared\n1234"),
    ("volumes", "grep -c ' /memory tmpfs' /proc/mounts", "1"),
    ("volumes", "dd if=/dev/zero of=/memory/x bs=1M count=2 2>&1 | grep -c 'No space'", "1"),
    ("volumes", "echo written >/host/out; cat /file", "on the host"),
    ("volumes", "sort /down/labels", "app=\"volumes\"\ntier=\"1\""),
    ("volumes", "cat /down/memory", "67108864"),
    (
        "volumes",
        "ls /all; cat /all/name /all/user /all/shape",
        "name\npassword\nshape\ntoken\nuser\nvolumesadaround",
    ),
    ("volumes", "cut -d. -f2 /all/token | tr _- /+ | base64 -d 2>/dev/null | grep -c somebody", "1"),
    ("volumes", "cat /var/run/secrets/kubernetes.io/serviceaccount/namespace", "default"),
    ("volumes", "ls /var/run/secrets/kubernetes.io/serviceaccount", "ca.crt\nnamespace\ntoken"),
];

#[test]
fn environment_and_volumes() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        std::fs::write(cluster.path("file"), "on the host\n")?;
        let directory = cluster.path("").display().to_string();
        cluster.apply(&OBJECTS.replace("DIRECTORY", directory.trim_end_matches('/')))?;
        cluster.ready(&["env", "volumes"])?;
        let mut wrong = Vec::new();
        for (pod, line, want) in CASES {
            let got = cluster.shell(pod, line).unwrap_or_else(|e| format!("{e:#}"));
            if got.trim_end() != *want {
                wrong.push(format!("{pod}: {line}\n   is {got:?}\n  not {want:?}"));
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        ensure!(std::fs::read_to_string(cluster.path("host/out"))? == "written\n");

        let deep = ".status.containerStatuses[?(@.name==\"main\")].volumeMounts[?(@.mountPath==\"/deep\")]";
        ensure!(cluster.field("pod/volumes", &format!("{deep}.recursiveReadOnly"))? == "Enabled");

        // Mounted objects are kept up to date; a sub path is not.
        cluster.kubectl(&["patch", "configmap", "config", "-p", r#"{"data": {"color": "green"}}"#])?;
        cluster.kubectl(&["label", "pod", "volumes", "tier=2", "--overwrite"])?;
        cluster.eventually(std::time::Duration::from_secs(90), || {
            let got = cluster.shell("volumes", "cat /config/color /one; grep tier /down/labels")?;
            ensure!(got.trim_end() == "greenbluetier=\"2\"", "{got}");
            Ok(())
        })
    });
}

/// Pods that cannot start yet; the waiting reason (or none) and an event that says why.
const WAITING: &[(&str, &str, &str, &str, &str)] = &[
    (
        "no-config",
        "env: [{name: A, valueFrom: {configMapKeyRef: {name: late, key: a}}}]",
        "",
        "Failed",
        r#"configmap "late" not found"#,
    ),
    (
        "no-volume",
        "volumeMounts: [{name: v, mountPath: /v}]",
        "volumes: [{name: v, secret: {secretName: late}}]",
        "FailedMount",
        r#"secret "late" not found"#,
    ),
];

#[test]
fn a_pod_waits_for_what_it_needs() {
    Cluster::test(YARE, Options::default(), |cluster| {
        cluster.import_busybox(IMAGE)?;
        for (name, container, spec, _, _) in WAITING {
            cluster.apply(&format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
                 {spec}\n  containers:\n  - name: main\n    image: {IMAGE}\n    command: [sleep, '1000']\n    {container}\n"
            ))?;
        }
        for (name, _, _, reason, text) in WAITING {
            cluster.event(name, reason, text)?;
        }
        cluster.becomes(
            "pod/no-config",
            ".status.containerStatuses[0].state.waiting.reason",
            "CreateContainerConfigError",
        )?;
        cluster.kubectl(&["create", "configmap", "late", "--from-literal=a=b"])?;
        cluster.kubectl(&["create", "secret", "generic", "late", "--from-literal=a=b"])?;
        cluster.kubectl(&["wait", "--for=condition=Ready", "pods", "--all", "--timeout=90s"])?;
        ensure!(cluster.shell("no-config", "echo $A")?.trim_end() == "b");
        ensure!(cluster.shell("no-volume", "cat /v/a")? == "b");
        Ok(())
    });
}
