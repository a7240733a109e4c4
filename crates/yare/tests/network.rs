//! Services and names: ClusterIP, NodePort, headless, affinity, hairpin, DNS.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::ensure;
use yare_testkit::{Cluster, Options};

const YARE: &str = env!("CARGO_BIN_EXE_yare");
const HELLO: &str = include_str!("../../../examples/hello.yaml");
const IMAGE: &str = "yare.local/busybox:1";

const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: node-port}
spec:
  type: NodePort
  selector: {app: hello}
  ports: [{port: 80, targetPort: http, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  sessionAffinity: ClientIP
  selector: {app: hello}
  ports: [{port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: hello}
  ports: [{name: http, port: 8080, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec:
  type: ExternalName
  externalName: hello.default.svc.cluster.local
---
apiVersion: v1
kind: Service
metadata: {name: self}
spec:
  selector: {app: self}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: members}
spec:
  clusterIP: None
  selector: {app: self}
---
apiVersion: v1
kind: Pod
metadata: {name: self, labels: {app: self}}
spec:
  hostname: me
  subdomain: members
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: yare.local/busybox:1
    command: [sh, -c, "mkdir /www; echo myself >/www/index.html; exec httpd -f -p 8080 -h /www"]
    ports: [{containerPort: 8080, hostPort: 8081}]
    readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "yare.local/busybox:1", command: [sh, -c, "exec sleep 1000"]}
---
apiVersion: v1
kind: Pod
metadata: {name: custom}
spec:
  terminationGracePeriodSeconds: 0
  dnsPolicy: None
  dnsConfig: {nameservers: [10.43.0.10], searches: [default.svc.cluster.local], options: [{name: ndots, value: "2"}]}
  hostAliases: [{ip: 192.0.2.7, hostnames: [alias.example]}]
  containers:
  - {name: main, image: "yare.local/busybox:1", command: [sh, -c, "exec sleep 1000"]}
"#;

fn start(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.import_busybox(IMAGE)?;
    cluster.apply(HELLO)?;
    cluster.apply(OBJECTS)?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    cluster.ready(&["self", "client", "custom"])
}

/// A shell line that prints what an address answers. (The wget of a static busybox needs libraries that the
/// image has not.)
fn ask(address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    // Its input stays open for a moment: a server may take the end of it for the end of the client.
    format!("{{ printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 1; }} | nc -w 5 {ip} {port} | tail -1")
}

/// The pods that answered `count` calls from a pod.
fn answering(cluster: &Cluster, address: SocketAddr, count: usize) -> anyhow::Result<BTreeSet<String>> {
    let text =
        cluster.shell("client", &format!("for i in $(seq {count}); do {} & done; wait", ask(address)))?;
    ensure!(text.lines().count() == count, "{text}");
    Ok(text.lines().filter_map(|l| l.split(' ').nth(3)).map(str::to_owned).collect())
}

#[test]
fn services() {
    Cluster::test(YARE, Options::default(), |cluster| {
        start(cluster)?;
        // The rollout is over when the pods are available, which their endpoints follow.
        let all = cluster.soon(|| {
            let all = answering(cluster, cluster.service("hello", 80)?, 40)?;
            ensure!(all.len() == 3, "{all:?}");
            Ok(all)
        })?;
        let sticky = answering(cluster, cluster.service("sticky", 80)?, 20)?;
        ensure!(sticky.len() == 1, "{sticky:?}");
        let pod = cluster.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=hello",
            "-o",
            "jsonpath={.items[0].status.podIP}",
        ])?;
        let direct = answering(cluster, format!("{pod}:8080").parse()?, 5)?;
        ensure!(direct.len() == 1 && direct.is_subset(&all), "{direct:?}");

        let node = cluster.field("node/node-1", ".status.addresses[?(@.type=='InternalIP')].address")?;
        let from_pod = answering(cluster, format!("{node}:30080").parse()?, 40)?;
        ensure!(from_pod.len() == 3, "{from_pod:?}");
        let address: SocketAddr = format!("{node}:30080").parse()?;
        ensure!(cluster.http(address, "/")?.code == 200);
        let ip = cluster.service("hello", 80)?;
        ensure!(cluster.http(ip, "/")?.code == 200);
        let host_port: SocketAddr = format!("{node}:8081").parse()?;
        ensure!(cluster.http(host_port, "/")?.body == "myself\n");

        // A pod reaches itself through its service.
        for _ in 0..3 {
            let answer = cluster.shell("self", &ask(cluster.service("self", 80)?))?;
            ensure!(answer == "myself\n", "{answer}");
        }
        // No endpoint: refused at once, not dropped.
        let refused =
            cluster.shell("client", &format!("{{ {}; }} 2>&1; true", ask(cluster.service("nobody", 80)?)))?;
        ensure!(refused.contains("refused"), "{refused}");
        // A service that is changed or gone is so at once.
        cluster.kubectl(&[
            "patch",
            "service",
            "hello",
            "-p",
            r#"{"spec": {"selector": {"app": "nobody"}}}"#,
        ])?;
        cluster.soon(|| {
            ensure!(cluster.http(ip, "/").is_err(), "still answers");
            Ok(())
        })?;
        cluster.kubectl(&["delete", "service", "node-port"])?;
        cluster.soon(|| {
            ensure!(cluster.http(address, "/").is_err(), "still answers");
            Ok(())
        })
    });
}

/// A service whose endpoints are said by hand.
const BY_HAND: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: by-hand}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: by-hand, labels: {kubernetes.io/service-name: by-hand}}
addressType: IPv4
endpoints: [{addresses: [ADDRESS]}]
ports: [{port: 8080}]
"#;

#[test]
fn services_of_other_proxies_and_slices_for_names_alone_are_left_alone() {
    Cluster::test(YARE, Options::default(), |cluster| {
        start(cluster)?;
        cluster.apply(&BY_HAND.replace("ADDRESS", &cluster.field("pod/self", ".status.podIP")?))?;
        let ip = cluster.service("by-hand", 80)?;
        let answers = |wanted: bool| {
            cluster.soon(|| {
                let answer = cluster.http(ip, "/");
                ensure!(answer.is_ok() == wanted, "{answer:?}");
                Ok(())
            })
        };
        answers(true)?;
        for (object, label) in [
            ("endpointslice/by-hand", "service.kubernetes.io/headless"),
            ("service/by-hand", "service.kubernetes.io/service-proxy-name"),
        ] {
            cluster.kubectl(&["label", object, &format!("{label}=")])?;
            answers(false)?;
            cluster.kubectl(&["label", object, &format!("{label}-")])?;
            answers(true)?;
        }
        Ok(())
    });
}

/// A firewall that is reloaded may empty nftables of all that others keep there.
#[test]
fn rules_that_another_program_removed_are_set_again() {
    Cluster::test(YARE, Options::default(), |cluster| {
        start(cluster)?;
        let hello = cluster.service("hello", 80)?;
        cluster.soon(|| cluster.http(hello, "/").map(drop))?;
        let flushed = cluster.run(cluster.command("nft").args(["flush", "ruleset"]))?;
        ensure!(flushed.status.success(), "{flushed:?}");
        let left = cluster.run(cluster.command("nft").args(["list", "ruleset"]))?;
        ensure!(left.status.success() && left.stdout.is_empty(), "{left:?}");
        // Who changes one service finds that all are gone.
        let port = r#"[{"op": "replace", "path": "/spec/ports/0/port", "value": 81}]"#;
        cluster.kubectl(&["patch", "service", "self", "--type=json", "-p", port])?;
        cluster.soon(|| cluster.http(hello, "/").map(drop))?;
        let myself = cluster.service("self", 81)?;
        cluster.soon(|| {
            let answer = cluster.http(myself, "/")?;
            ensure!(answer.body == "myself\n", "{answer:?}");
            Ok(())
        })
    });
}

#[test]
fn the_proxy_tells_whether_it_and_its_node_are_well() {
    let options = Options {
        args: vec!["--kube-proxy-arg=healthz-bind-address=0.0.0.0:10300".into()],
        ..Options::default()
    };
    Cluster::test(YARE, options, |cluster| {
        let well = |path: &str, code: u16| {
            cluster.soon(|| {
                let answer = cluster.http("127.0.0.1:10300".parse()?, path)?;
                ensure!(answer.code == code, "{path}: {answer:?}");
                Ok(serde_json::from_str::<serde_json::Value>(&answer.body)?)
            })
        };
        let report = well("/healthz", 200)?;
        ensure!(report["nodeEligible"] == true && report["status"]["IPv4"]["healthy"] == true, "{report}");
        let mode = cluster.http("127.0.0.1:10249".parse()?, "/proxyMode")?;
        ensure!(mode.code == 200 && mode.body == "nftables", "{mode:?}");
        // The node is to go, which makes no difference to the proxy.
        cluster.kubectl(&["taint", "node", "node-1", "ToBeDeletedByClusterAutoscaler=1:PreferNoSchedule"])?;
        let report = well("/healthz", 503)?;
        ensure!(report["nodeEligible"] == false && report["healthy"] == true, "{report}");
        ensure!(well("/livez", 200)?.get("nodeEligible").is_none());
        cluster.kubectl(&["taint", "node", "node-1", "ToBeDeletedByClusterAutoscaler-"])?;
        well("/healthz", 200)?;
        Ok(())
    });
}

/// Pod, shell line, what the output has.
const NAMES: &[(&str, &str, &[&str])] = &[
    (
        "client",
        "nslookup -type=a hello.default.svc.cluster.local",
        &["Name:\thello.default.svc.cluster.local", "Address: HELLO"],
    ),
    ("client", "nslookup -type=a kubernetes.default.svc.cluster.local", &["Address: 10.43.0.1"]),
    ("client", "nslookup -type=a hello; true", &["Address: HELLO"]),
    ("client", "ping -c 1 -w 1 hello.default 2>&1 | head -1", &["PING hello.default (HELLO)"]),
    (
        "client",
        "nslookup -type=srv _http._tcp.hello.default.svc.cluster.local",
        &["0 100 80 hello.default.svc.cluster.local"],
    ),
    ("client", "nslookup -type=srv _http._tcp.headless.default.svc.cluster.local", &[" 8080 10-42-0-"]),
    ("client", "nslookup HELLO", &["name = hello.default.svc.cluster.local"]),
    (
        "client",
        "nslookup -type=a outside.default.svc.cluster.local",
        &["canonical name = hello.default.svc.cluster.local", "Address: HELLO"],
    ),
    ("client", "nslookup -type=a me.members.default.svc.cluster.local", &["Address: SELF"]),
    ("client", "nslookup -type=a nobody-at-all.default.svc.cluster.local 2>&1; true", &["NXDOMAIN"]),
    ("client", "nslookup -type=aaaa hello.default.svc.cluster.local | grep -c Address:", &["1"]),
    (
        "client",
        "cat /etc/resolv.conf",
        &[
            "search default.svc.cluster.local svc.cluster.local cluster.local",
            "nameserver 10.43.0.10",
            "options ndots:5",
        ],
    ),
    ("self", "hostname; hostname -f", &["me\nme.members.default.svc.cluster.local"]),
    (
        "custom",
        "cat /etc/resolv.conf",
        &["search default.svc.cluster.local\n", "nameserver 10.43.0.10", "options ndots:2"],
    ),
    ("custom", "cat /etc/hosts", &["192.0.2.7\talias.example"]),
    ("custom", "nslookup -type=a hello", &["Address: HELLO"]),
];

#[test]
fn names() {
    Cluster::test(YARE, Options::default(), |cluster| {
        start(cluster)?;
        let hello = cluster.field("service/hello", ".spec.clusterIP")?;
        let own = cluster.field("pod/self", ".status.podIP")?;
        let fill = |text: &str| text.replace("HELLO", &hello).replace("SELF", &own);
        let mut wrong = Vec::new();
        for (pod, line, parts) in NAMES {
            let check = || {
                let got = cluster.shell(pod, &fill(line))?;
                for part in *parts {
                    ensure!(got.contains(&fill(part)), "{pod}: {line}\n  no {:?} in\n{got}", fill(part));
                }
                Ok(())
            };
            // Endpoints come to DNS a moment after they are ready.
            wrong.extend(
                cluster.eventually(std::time::Duration::from_secs(3), check).err().map(|e| format!("{e:#}")),
            );
        }
        let headless = cluster.shell("client", "nslookup -type=a headless.default.svc.cluster.local")?;
        let addresses = headless.lines().filter(|l| l.starts_with("Address: 10.42.")).count();
        ensure!(addresses == 3, "{headless}");
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    });
}
