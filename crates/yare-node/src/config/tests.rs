//! The configuration as its users meet it.

use super::form::Form;
use super::*;

fn load(sources: Sources) -> Result<Configuration, String> {
    sources.load().map_err(|e| e.to_string())
}

fn inline(text: &str) -> Result<Configuration, String> {
    load(Sources { inline: vec![text.to_owned()], ..Sources::default() })
}

fn flags(flags: &[(&str, &str)]) -> Result<Configuration, String> {
    let flags = flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    load(Sources { flags, ..Sources::default() })
}

fn sample(form: Form) -> Value {
    match form {
        Form::Bool => json!(true),
        Form::Int32 | Form::OptInt32 | Form::Int64 | Form::OptInt64 => json!(7),
        Form::OptFloat => json!(0.5),
        Form::Text | Form::OptText => json!("x"),
        Form::Duration | Form::OptDuration => json!("7s"),
        Form::Texts => json!(["x"]),
        Form::Int32s => json!([7]),
        Form::TextMap => json!({"a": "b"}),
        Form::Gates => json!({"NodeSwap": true}),
        Form::Headers => json!({"a": ["b"]}),
        Form::Taints => json!([{"key": "a", "effect": "NoExecute"}]),
        Form::Priorities => json!([{"priority": 1, "shutdownGracePeriodSeconds": 2}]),
        Form::Reservations => json!([{"numaNode": 0, "limits": {"memory": "1Gi"}}]),
        Form::Free => json!([{"a": 1}]),
    }
}

#[test]
fn every_row_has_a_type_a_field_and_a_default_that_can_be_read() {
    let (schema, root) = &*SCHEMA;
    for row in ROWS {
        let mut document = json!({});
        set(&mut document, row.field, sample(row.form));
        let decoded = normalize(schema.at(*root), document, Mode::Strict);
        let decoded = decoded.unwrap_or_else(|e| panic!("{}: {e}", row.field)).value;
        assert_eq!(get(&decoded, row.field), Some(&sample(row.form)), "{}", row.field);
        serde_json::from_value::<Settings>(decoded).unwrap_or_else(|e| panic!("{}: {e}", row.field));
        assert_eq!(row.default.is_empty(), default_of(row).is_none(), "{}", row.field);
        assert_eq!(ROWS.iter().filter(|other| other.field == row.field).count(), 1, "{}", row.field);
    }
}

#[test]
fn defaults_are_upstreams() {
    let config = Configuration::default();
    assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    let s = config.settings();
    assert_eq!((s.port, s.max_pods, s.pod_pids_limit, s.node_status_max_images), (10250, 110, -1, 50));
    assert_eq!(s.authentication.webhook.cache_ttl.get().as_secs(), 120);
    assert_eq!(s.node_status_report_frequency.get().as_secs(), 300);
    assert_eq!(s.enforce_node_allocatable, ["pods"]);
    assert!(s.serialize_image_pulls && s.register_node && !s.authentication.anonymous.enabled);
    assert_eq!(config.document()["authorization"]["webhook"]["cacheUnauthorizedTTL"], "30s");
    assert_eq!(config.document()["evictionPressureTransitionPeriod"], "5m0s");
}

#[test]
fn sources_win_in_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}")).unwrap();
        path
    };
    let file = write(
        "kubelet.yaml",
        "maxPods: 10\nstaticPodPath: manifests\nevictionHard: {memory.available: 1Mi, nodefs.available: 1%}\nport: 1",
    );
    write("d/10-a.conf", "maxPods: 20\nevictionHard: {memory.available: 2Mi}\nport: 2");
    write("d/20/b.conf", "port: null\nnodeStatusUpdateFrequency: 3s");
    write("d/30.yaml", "nonsense: 1");
    let config = load(Sources {
        base: vec![("maxPods", json!(5)), ("clusterDomain", json!("base"))],
        gates: String::new(),
        file: Some(file),
        directory: Some(dir.path().join("d")),
        inline: vec!["clusterDomain: inline".into()],
        flags: vec![("max-pods".into(), "30".into())],
    });
    let config = config.unwrap();
    let s = config.settings();
    assert_eq!((s.max_pods, s.port, s.cluster_domain.as_str()), (30, 10250, "inline"));
    assert_eq!(s.static_pod_path, dir.path().join("manifests").to_str().unwrap());
    assert_eq!(s.eviction_hard.len(), 2);
    assert_eq!(s.eviction_hard["memory.available"], "2Mi");
    // Where the one is given, the other follows.
    assert_eq!(s.node_status_report_frequency.get().as_secs(), 3);
}

#[test]
fn flags_read_as_upstreams_do() {
    let config = flags(&[
        ("allowed-unsafe-sysctls", "net.core.somaxconn,kernel.msg*"),
        ("allowed-unsafe-sysctls", "net.ipv4.tcp_syncookies"),
        ("max-pods", "7"),
        ("pod-max-pids", "-5"),
        ("register-with-taints", "dedicated=web:NoSchedule,slow:NoExecute"),
        ("eviction-hard", "memory.available<1Gi,nodefs.available<10%"),
        ("feature-gates", "NodeSwap=true,MemoryQoS=true"),
        ("manifest-url-header", "a:hello,b:again"),
        ("manifest-url-header", "a:world"),
        ("node-status-update-frequency", "1m30s"),
        ("anonymous-auth", "true"),
    ]);
    let config = config.unwrap();
    let s = config.settings();
    assert_eq!(s.allowed_unsafe_sysctls, ["net.core.somaxconn", "kernel.msg*", "net.ipv4.tcp_syncookies"]);
    assert_eq!((s.max_pods, s.pod_pids_limit), (7, -1));
    let taints: Vec<_> =
        s.register_with_taints.iter().map(|t| format!("{}={}:{}", t.key, t.value, t.effect)).collect();
    assert_eq!(taints, ["dedicated=web:NoSchedule", "slow=:NoExecute"]);
    assert_eq!(s.eviction_hard["nodefs.available"], "10%");
    assert_eq!(s.static_pod_url_header["a"], ["hello", "world"]);
    assert_eq!(config.document()["nodeStatusUpdateFrequency"], "1m30s");
    assert!(config.gates().is_on("MemoryQoS") && s.authentication.anonymous.enabled);
}

#[test]
fn what_changes_nothing_is_named() {
    let config = inline("iptablesDropBit: 3\nimageGCLowThresholdPercent: 80\nrunOnce: false").unwrap();
    assert_eq!(config.warnings().len(), 1, "{:?}", config.warnings());
    assert!(config.warnings()[0].starts_with("iptablesDropBit changes nothing: "));
}

#[test]
fn what_is_wrong_is_refused_in_upstreams_words() {
    for (text, part) in [
        ("maxPod: 1", "strict decoding error: unknown field \"maxPod\""),
        ("authentication: {webhook: {ttl: 1s}}", "unknown field \"authentication.webhook.ttl\""),
        ("maxPods: 1\nmaxPods: 2", "key \"maxPods\" already set in map"),
        (
            "maxPods: many",
            "json: cannot unmarshal string into Go struct field KubeletConfiguration.maxPods of type int32",
        ),
        ("syncFrequency: soon", "time: invalid duration \"soon\""),
        ("maxPods: -1", "invalid configuration: maxPods (--max-pods) -1 must not be a negative number"),
        ("runOnce: true", "Runonce mode has been deprecated and should not be set"),
        ("kubeletCgroups: /x", "kubeletCgroups \"/x\" is not supported: "),
        ("featureGates: {NoSuch: true}", "unrecognized feature gate: NoSuch"),
        ("authorization: {mode: RBAC}", "unknown authorization mode RBAC"),
        (
            "imageGCHighThresholdPercent: 50",
            "80 must be less than imageGCHighThresholdPercent (--image-gc-high-threshold) 50",
        ),
        ("containerLogMaxFiles: 1\nhealthzPort: 70000", "error: [invalid configuration: healthzPort"),
        (
            "enforceNodeAllocatable: [kube-reserved]",
            "kubeReservedCgroup (--kube-reserved-cgroup) must be specified",
        ),
        ("enableSystemLogQuery: true\nenableSystemLogHandler: false", "enableSystemLogHandler is required"),
        ("registerWithTaints: [{key: a, effect: Never}]", "invalid taint: {a  Never}"),
        (
            "tracing: {samplingRatePerMillion: 1000001}",
            "tracing.samplingRatePerMillion: Invalid value: 1000001: sampling rate per million must be less than",
        ),
        (
            "tracing: {endpoint: \"http://a:1\"}",
            "tracing.endpoint: Invalid value: \"http://a:1\": unsupported",
        ),
        ("tracing: {rate: 1}", "unknown field \"tracing.rate\""),
    ] {
        let error = inline(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
    for (name, value, part) in [
        ("no-such", "1", "unknown flag: --no-such"),
        (
            "max-pods",
            "x",
            "invalid argument \"x\" for \"--max-pods\" flag: strconv.ParseInt: parsing \"x\": invalid syntax",
        ),
        ("max-pods", "3000000000", "value out of range"),
        ("anonymous-auth", "maybe", "strconv.ParseBool: parsing \"maybe\": invalid syntax"),
        ("eviction-hard", "memory.available=1", "malformed pair, expect string<string"),
        ("register-with-taints", "a=b", "invalid taint spec: a=b"),
        ("register-with-taints", "a:Never", "invalid taint effect: Never"),
        ("reserved-memory", "x:memory=1", "invalid format"),
    ] {
        let error = flags(&[(name, value)]).unwrap_err();
        assert!(error.contains(part), "{name}={value}: {error}");
    }
}

#[test]
fn files_must_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    for (text, part) in [
        ("", "was empty"),
        ("maxPods: 1", "Object 'Kind' is missing"),
        ("apiVersion: v1\nkind: Pod", "no kind \"Pod\" is registered for version \"v1\""),
        ("kind: [", "failed to decode: "),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = load(Sources { file: Some(path.clone()), ..Sources::default() }).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
    std::fs::remove_file(&path).unwrap();
    for sources in [
        Sources { file: Some(path.clone()), ..Sources::default() },
        Sources { directory: Some(path.clone()), ..Sources::default() },
    ] {
        assert!(load(sources).unwrap_err().contains("c.yaml"));
    }
}
