#!/usr/bin/python
"""A fresh Ed25519 key pair, returned and written nowhere."""

from __future__ import annotations

DOCUMENTATION = r"""
module: new_ssh_key
short_description: Return a fresh Ed25519 key pair without writing it anywhere
description: For one-time host keys. Use C(no_log).
"""

RETURN = r"""
private: {description: OpenSSH private key., type: str, returned: always}
public: {description: One line without comment., type: str, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew.secret_store import ssh_key


def main():
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, **ssh_key())


if __name__ == "__main__":
    main()
