"""`millrace-loadgen run` signs its users' tokens with a private key of each kind that logic takes."""

import json
import subprocess

import pytest

from processes import API_TOKEN, BINARIES, Tiers

# How openssl makes a key for each algorithm.
KEYS = {
    "RS256": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    "ES256": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "EdDSA": ["-algorithm", "ED25519"],
}


@pytest.fixture(scope="module")
def tiers(tmp_path_factory):
    """Tiers whose logic trusts one key of each kind."""
    folder = tmp_path_factory.mktemp("keys")
    public = b""
    for name, options in KEYS.items():
        private = folder / f"{name}.pem"
        subprocess.run(["openssl", "genpkey", *options, "-out", private], check=True, capture_output=True)
        public += subprocess.run(["openssl", "pkey", "-in", private, "-pubout"], check=True, capture_output=True).stdout
    (folder / "public.pem").write_bytes(public)
    tiers = Tiers(folder)
    tiers.login_settings = f'method = "public_key"\npublic_key_file = "{folder / "public.pem"}"\n'
    tiers.start_logic()
    tiers.start_gateway()
    yield tiers
    tiers.stop()


def run(tiers, tmp_path, algorithm, key):
    """Exit code, what it printed, and the report, of a short scenario with this key."""
    scenario, report = tmp_path / "keys.toml", tmp_path / "report.json"
    scenario.write_text(
        'connections = 10\nthresholds = ["loss = 0"]\n[connect]\nper_second = 100\n'
        f'[login]\nalgorithm = "{algorithm}"\nkey_file = "{key}"\n'
        '[single_chat]\nper_second = 20\n[[stage]]\nduration = "1s"\n'
    )
    ready = tiers.ready
    command = [
        BINARIES / "millrace-loadgen", "run", scenario, "--tcp", ready["tcp"], "--websocket", ready["websocket"], "--http", ready["http"],
        "--api-token", API_TOKEN, "--allow-late", "--quiet", "--json", report,
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr, json.loads(report.read_text()) if report.exists() else None


@pytest.mark.parametrize("algorithm", KEYS)
def test_users_log_in_with_tokens_signed_by_a_key_of_this_kind(tiers, tmp_path, algorithm):
    status, said, report = run(tiers, tmp_path, algorithm, tiers.folder / f"{algorithm}.pem")
    assert status == 0, said
    assert report["counters"]["logins"] == 10, said
    assert report["counters"]["acked"] == report["counters"]["intended"] > 0, said


def test_a_key_of_another_kind_is_an_argument_that_is_refused_before_anybody_connects(tiers, tmp_path):
    status, said, report = run(tiers, tmp_path, "RS256", tiers.folder / "ES256.pem")
    assert (status, report) == (104, None), said
    assert "ES256.pem: no private key for RS256 in PEM" in said, said
