"""What a program with the `kubernetes` package does: list, watch, patch, apply, be refused.

Runs in the network of a test's cluster; KUBECONFIG names its administrator. Any difference is an exception.
"""

import json
import threading

from kubernetes import client, config, dynamic, watch
from kubernetes.client.exceptions import ApiException

NAMESPACE = "default"


def check(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: {got!r}, not {want!r}")


def refused(code, reason, call):
    try:
        call()
    except ApiException as error:
        check((error.status, json.loads(error.body)["reason"]), (code, reason), "the refusal")
        return
    raise AssertionError(f"not refused with {code}")


def typed(core):
    """Typed objects through a watch in another thread."""
    start = core.list_namespaced_config_map(NAMESPACE, label_selector="by=python").metadata.resource_version
    events = []

    def observe():
        stream = watch.Watch()
        for event in stream.stream(
            core.list_namespaced_config_map,
            NAMESPACE,
            label_selector="by=python",
            resource_version=start,
            timeout_seconds=20,
        ):
            events.append((event["type"], event["object"].metadata.name, dict(event["object"].data or {})))
            if event["type"] == "DELETED":
                stream.stop()

    observer = threading.Thread(target=observe)
    observer.start()

    meta = client.V1ObjectMeta(name="typed", labels={"by": "python"})
    core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=meta, data={"a": "1"}))
    refused(409, "AlreadyExists", lambda: core.create_namespaced_config_map(
        NAMESPACE, client.V1ConfigMap(metadata=meta)))
    core.patch_namespaced_config_map("typed", NAMESPACE, {"data": {"b": "2"}})
    core.patch_namespaced_config_map("typed", NAMESPACE, [{"op": "remove", "path": "/data/a"}])
    current = core.read_namespaced_config_map("typed", NAMESPACE)
    stale = current.metadata.resource_version
    current.data["c"] = "3"
    replaced = core.replace_namespaced_config_map("typed", NAMESPACE, current)
    check(replaced.data, {"b": "2", "c": "3"}, "replaced data")
    replaced.metadata.resource_version = stale
    refused(409, "Conflict", lambda: core.replace_namespaced_config_map("typed", NAMESPACE, replaced))
    core.delete_namespaced_config_map("typed", NAMESPACE)
    refused(404, "NotFound", lambda: core.read_namespaced_config_map("typed", NAMESPACE))

    observer.join(timeout=30)
    check(events, [
        ("ADDED", "typed", {"a": "1"}),
        ("MODIFIED", "typed", {"a": "1", "b": "2"}),
        ("MODIFIED", "typed", {"b": "2"}),
        ("MODIFIED", "typed", {"b": "2", "c": "3"}),
        ("DELETED", "typed", {"b": "2", "c": "3"}),
    ], "events")


def pages(core):
    """Everything, two at a time."""
    names = [f"page-{number}" for number in range(5)]
    for name in names:
        meta = client.V1ObjectMeta(name=name, labels={"by": "pages"})
        core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=meta))
    seen, token = [], None
    while True:
        page = core.list_namespaced_config_map(NAMESPACE, label_selector="by=pages", limit=2, _continue=token)
        seen += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        if not token:
            break
    check(seen, names, "pages")
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="by=pages")
    check(core.list_namespaced_config_map(NAMESPACE, label_selector="by=pages").items, [], "what is left")


def applied(api):
    """Server-side apply by the dynamic client, which reads discovery."""
    resources = dynamic.DynamicClient(api)
    deployments = resources.resources.get(api_version="apps/v1", kind="Deployment")
    labels = {"app": "web"}
    wanted = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": NAMESPACE},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "web", "image": "yare.local/hello"}]},
            },
        },
    }
    made = deployments.server_side_apply(body=wanted, field_manager="python")
    check(made.spec.strategy.type, "RollingUpdate", "the default strategy")
    wanted["spec"]["template"]["spec"]["containers"].append({"name": "side", "image": "yare.local/hello"})
    deployments.server_side_apply(body=wanted, field_manager="python")
    wanted["spec"]["replicas"] = 1
    refused(409, "Conflict", lambda: deployments.server_side_apply(body=wanted, field_manager="other"))
    made = deployments.server_side_apply(body=wanted, field_manager="other", force_conflicts=True)
    check(made.spec.replicas, 1, "replicas after force")
    check([c.name for c in made.spec.template.spec.containers], ["web", "side"], "containers")

    apps = client.AppsV1Api(api)
    scale = apps.patch_namespaced_deployment_scale("web", NAMESPACE, {"spec": {"replicas": 0}})
    # None at all is how a scale says it.
    check(scale.spec.replicas, None, "scale")
    check(apps.read_namespaced_deployment("web", NAMESPACE).spec.replicas, 0, "replicas after scale")
    deployments.delete(name="web", namespace=NAMESPACE)


def main():
    config.load_kube_config()
    api = client.ApiClient()
    check(client.VersionApi(api).get_code().minor, "36", "minor version")
    core = client.CoreV1Api(api)
    typed(core)
    pages(core)
    applied(api)
    print("done")


main()
