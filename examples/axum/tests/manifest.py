"""Checks that the times and names in kubernetes.yaml, signups.service and host/src/deployment.md are equal. Run it in the root of the repository. Needs PyYAML."""

import re
import yaml

with open("examples/axum/kubernetes.yaml") as file:
    deployment, service = yaml.safe_load_all(file)
assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
labels = deployment["spec"]["template"]["metadata"]["labels"]
assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
pod = deployment["spec"]["template"]["spec"]
[container] = pod["containers"]
[port] = container["ports"]
assert container["args"][container["args"].index("--listen") + 1] == f"0.0.0.0:{port['containerPort']}"
assert service["spec"]["ports"][0]["targetPort"] == port["name"]
assert container["args"][container["args"].index("--host") + 1] == service["metadata"]["name"], "the service rejects its own name"
for probe, path in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")]:
    assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}, probe
mounted = [mount["name"] for mount in container["volumeMounts"]]
assert mounted == [volume["name"] for volume in pod["volumes"]]

grace = int(container["args"][container["args"].index("--grace") + 1])
before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
killed = pod["terminationGracePeriodSeconds"]
assert killed >= before + grace + 2, f"killed after {killed} s, before {before} + {grace} + 2"
with open("host/src/deployment.md") as file:
    page = file.read()
for name, value in [("`preStop.sleep.seconds`", before), ("`Host::grace`", grace), ("`terminationGracePeriodSeconds`", killed)]:
    assert f"| {name} | {value} |" in page, f"the page has a different {name}"

with open("examples/axum/signups.service") as file:
    unit = file.read()
grace, killed = (int(re.search(number, unit)[1]) for number in [r"--grace (\d+)", r"TimeoutStopSec=(\d+)"])
assert killed >= grace + 2, f"systemd kills after {killed} s, with a grace of {grace}"
print(f"Kubernetes: {before} s, then {grace} s; systemd: {grace} s of {killed} s")
