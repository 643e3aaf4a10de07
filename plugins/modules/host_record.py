#!/usr/bin/python
"""Keep what hosts were made of, and refuse one that came back as another; thin over groundcrew.host_record."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_record
short_description: Keep what hosts were made of, and refuse one that came back as another
description:
  - Runs on the controller. Region, endpoint and credentials come from the play's C(environment).
  - All hosts are compared before anything is written.
options:
  environment_name: {description: The value of the tag Environment., type: str, required: true}
  bucket: {description: Name of the store., type: str, required: true}
  machines:
    description: >-
      Host name to what tells its present machine from the one before. Left out, it is the one that was recorded last, and hosts without
      a record get none.
    type: dict
    default: {}
  parts: {description: Host name to the parts of its fingerprint., type: dict, required: true}
  releases: {description: Host name to its services and their releases., type: dict, required: true}
  accept: {description: Whether a host may have come back as another., type: bool, default: false}
"""

RETURN = r"""
found: {description: Host name to how it came back., type: dict, returned: always}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.groundcrew import host_record
from ansible.module_utils.groundcrew.cloud import Cloud
from ansible.module_utils.groundcrew.errors import GroundcrewError


def main():
    module = AnsibleModule(
        argument_spec={
            "environment_name": {"type": "str", "required": True},
            "bucket": {"type": "str", "required": True},
            "machines": {"type": "dict", "default": {}},
            "parts": {"type": "dict", "required": True},
            "releases": {"type": "dict", "required": True},
            "accept": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    wanted = module.params
    bucket, machines = wanted["bucket"], wanted["machines"]
    try:
        s3, ec2 = boto3.client("s3"), boto3.client("ec2")
        interfaces = Cloud(lambda _: ec2, wanted["environment_name"], bucket).interfaces()
        found, faults, stale = {}, [], {}
        for name, parts in wanted["parts"].items():
            there = interfaces[name]
            machine = machines.get(name, there["built"])
            if not machine:
                found[name] = "not finished yet"
                continue
            record = host_record.made(machine, parts, wanted["releases"][name])
            if (there["built"], there["fingerprint"]) == (record["machine"], record["digest"]):
                found[name] = "the same machine"
                continue
            stale[name] = record
            try:
                # A new host may have the name of one that was retired.
                before = host_record.read(s3, bucket, name) if there["built"] else {}
                found[name] = host_record.compare(name, before, record)
            except GroundcrewError as error:
                found[name] = str(error)
                faults.append(str(error))
        if faults and not wanted["accept"]:
            module.fail_json(msg=" ".join(faults), found=found)
        for name, record in () if module.check_mode else stale.items():
            host_record.write(s3, bucket, name, record)
            tags = {"Built": record["machine"], "Fingerprint": record["digest"]}
            ec2.create_tags(
                Resources=[interfaces[name]["id"]],
                Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
            )
    except KeyError as error:
        module.fail_json(msg=f"{error} has no network interface or no machine in the cloud.")
    except (BotoCoreError, ClientError) as error:
        module.fail_json(msg=f"The cloud refused to keep a record: {error}")
    module.exit_json(changed=bool(stale), found=found)


if __name__ == "__main__":
    main()
