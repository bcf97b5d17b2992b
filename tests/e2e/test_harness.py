"""The tests' own machinery, where a mistake of it would look like one of Millrace."""

from processes import port_that_no_connection_takes


def test_no_port_is_given_to_two_servers():
    # Out of 16,384 on most machines: by chance alone a thousand would not differ.
    ports = [port_that_no_connection_takes() for _ in range(1_000)]
    assert len(set(ports)) == len(ports)
