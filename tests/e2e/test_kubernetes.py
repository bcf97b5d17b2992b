"""The manifests in configs/kubernetes: they fit Kubernetes' schemas, and name what the programs and their configuration really have.

No cluster is there to run them on; kustomize is not needed.
"""

import json
import os

import kubernetes_validate
import yaml

import deployments
from deployments import CONFIGS, KUBERNETES, check, defaults, pods, port, toml


def test_pods_have_the_time_to_leave():
    gateway, logic = pods()["millrace-gateway"][1], pods()["millrace-logic"][1]
    sleep = gateway["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep[0] == "sleep"
    assert gateway["terminationGracePeriodSeconds"] > int(sleep[1]) + deployments.gateway_leaves_s(KUBERNETES / "gateway.toml")
    assert logic["terminationGracePeriodSeconds"] > 2 * deployments.logic_leaves_s(KUBERNETES / "logic.toml")


def test_every_object_fits_kubernetes_own_schema():
    for file, one in deployments.manifests():
        # The checker wants a name of objects that the server names.
        named = {**one, "metadata": {"name": "named-by-the-server", **one["metadata"]}}
        for version in ("1.27", "1.34"):
            try:
                kubernetes_validate.validate(named, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                raise AssertionError(f"{file}, {one['kind']}: {error}") from error


def test_kustomize_names_every_file():
    kustomization = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    there = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    # The migration is a job of its own: it is made anew for each release.
    assert set(kustomization["resources"]) == there - {"migrate.yaml"}
    generated = {entry["name"]: entry["files"] for entry in kustomization["configMapGenerator"]}
    assert all((KUBERNETES / file).exists() for files in generated.values() for file in files)
    for workload, (one, pod) in pods().items():
        maps = [volume["configMap"]["name"] for volume in pod.get("volumes", []) if "configMap" in volume]
        assert set(maps) <= set(generated), workload
    image = kustomization["images"][0]
    assert pods()["millrace-migrate-"][1]["containers"][0]["image"] == f"{image['newName']}:{image['newTag']}"


def test_pods_run_programs_and_ports_that_their_configuration_opens(tmp_path):
    for tier, listens in (("gateway", ("listen.websocket", "listen.tcp", "admin.listen")), ("logic", ("link.listen", "http.listen", "grpc.listen", "admin.listen"))):
        _, pod = pods()[f"millrace-{tier}"]
        container = pod["containers"][0]
        assert container["command"] == [f"millrace-{tier}", "run", "--config", f"/etc/millrace/{tier}.toml"]
        config, default = toml(KUBERNETES / f"{tier}.toml"), defaults(f"millrace-{tier}")
        opened = set()
        for place in listens:
            section, key = place.split(".")
            address = config.get(section, {}).get(key, default[section][key])
            assert address.startswith("0.0.0.0:"), f"{tier}: {place} is {address}, which nobody else reaches"
            opened.add(port(address))
        named = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
        assert set(named.values()) == opened
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["path"] == ("/readyz" if probe == "readinessProbe" else "/livez") and named[asked["port"]] == port(config["admin"]["listen"])
        for _, service in deployments.manifests():
            if service["kind"] == "Service" and service["spec"]["selector"] == {"app": f"millrace-{tier}"}:
                for entry in service["spec"]["ports"]:
                    assert named.get(entry["targetPort"], entry["targetPort"]) in opened
        annotations = pods()[f"millrace-{tier}"][0]["spec"]["template"]["metadata"]["annotations"]
        assert int(annotations["prometheus.io/port"]) == named["admin"]


def test_gateways_find_the_headless_service_of_logic():
    endpoint = toml(KUBERNETES / "gateway.toml")["logic"]["endpoints"][0]
    host, link = endpoint.rsplit("/", 1)[-1].removeprefix("dns:").rsplit(":", 1)
    services = {one["metadata"]["name"]: one["spec"] for _, one in deployments.manifests() if one["kind"] == "Service"}
    assert services[host]["clusterIP"] == "None" and int(link) == services[host]["ports"][0]["port"] == port(toml(KUBERNETES / "logic.toml")["link"]["listen"])


def test_a_logic_pod_is_named_after_itself():
    # Without a name of its own a process has the host's, and a pod's host has the pod's name unless it is told otherwise.
    assert not {**defaults("millrace-logic")["link"], **toml(KUBERNETES / "logic.toml")["link"]}["logic_id"]
    pod = pods()["millrace-logic"][1]
    assert not {"hostname", "hostNetwork", "setHostnameAsFQDN"} & set(pod) and "initContainers" not in pod
    checked = check("millrace-logic", KUBERNETES / "logic.toml")
    assert checked.returncode == 0, checked.stderr


def test_a_gateway_pod_has_memory_for_its_connections():
    _, pod = pods()["millrace-gateway"]
    limit = pod["containers"][0]["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    connections = toml(KUBERNETES / "gateway.toml")["connections"]["connections_max"]
    # As the gateway itself reckons: docs/operations.md, "How many connections".
    assert connections * (256 + 4100) <= int(limit[:-2]) * 2**30 * 0.8
    assert toml(KUBERNETES / "gateway.toml")["gateway"]["shards"] == int(pod["containers"][0]["resources"]["requests"]["cpu"])


def test_the_seccomp_profile_of_the_pods_is_the_one_that_is_there():
    profile = pods()["millrace-gateway"][1]["securityContext"]["seccompProfile"]
    assert profile["type"] == "Localhost" and (CONFIGS / "seccomp" / os.path.basename(profile["localhostProfile"])).exists()
    refused = {call for rule in json.loads((CONFIGS / "seccomp" / "io_uring.json").read_text())["syscalls"] for call in rule["names"]}
    assert not refused & {"io_uring_setup", "io_uring_enter", "io_uring_register"}
