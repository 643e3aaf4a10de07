#!/usr/bin/python
"""Write all files of a role in one call: content, owner, mode, validation; check mode and diff."""

from __future__ import annotations

DOCUMENTATION = r"""
module: managed_files
short_description: Bring a list of files and directories into a stated form in one call
description:
  - A task costs 0.25 to 0.5 s a host, so ten C(template) tasks cost more than everything they write. Roles render their
    templates with the C(template) lookup and hand the results to this module.
  - Files are handled in the order given; each replaces the old one atomically, and only if its O(files[].validate) command accepts it.
options:
  files:
    description: What there should be.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Absolute path on the host., type: path, required: true}
      state: {description: File with content or directory or nothing., type: str, choices: [file, directory, absent], default: file}
      content: {description: The whole content of a file., type: str}
      json: {description: "Keys to merge into the JSON object that is in the file; keys that others put there stay.", type: dict}
      create_only: {description: Leave the content alone when the file is already there., type: bool, default: false}
      mode: {description: "Octal mode as a string. Default 0644 for files, 0755 for directories.", type: str}
      owner: {description: User name or number., type: str, default: root}
      group: {description: Group name or number; the owner's own group when empty., type: str}
      validate: {description: "A command with %s for the temporary file; a failure keeps the old file.", type: str}
      secret: {description: Keep the content out of the diff., type: bool, default: false}
"""

RETURN = r"""
paths: {description: The paths that changed., type: list, elements: str, returned: always}
"""

import grp
import json
import os
import pwd
import shutil
import stat
import tempfile

from ansible.module_utils.basic import AnsibleModule


def identity(name, database, attribute):
    """Number of a user or group that is named or numbered; None when it does not exist (yet)."""
    if name.isdigit():
        return int(name)
    try:
        return getattr(database(name), attribute)
    except KeyError:
        return None


def merge(current, wanted):
    """Wanted over current; objects key by key, lists as a union in order, anything else replaced."""
    if isinstance(current, dict) and isinstance(wanted, dict):
        return {**current, **{key: merge(current.get(key), value) for key, value in wanted.items()}}
    if isinstance(current, list) and isinstance(wanted, list):
        return current + [value for value in wanted if value not in current]
    return wanted


class File:
    """One wanted path and its difference to what is there."""

    def __init__(self, module, wanted, undo):
        # undo: what was at the paths that this call has replaced so far, for when a later file is refused.
        self.module, self.wanted, self.undo = module, wanted, undo
        self.path, self.state = wanted["path"], wanted["state"]
        self.mode = int(wanted["mode"] or ("0755" if self.state == "directory" else "0644"), 8)
        if self.state == "file" and (wanted["content"] is None) == (wanted["json"] is None):
            module.fail_json(
                msg=f"managed_files: {self.path} needs one of content and json (or state: directory)."
            )
        self.uid = identity(wanted["owner"], pwd.getpwnam, "pw_uid")
        if wanted["group"]:
            self.gid = identity(wanted["group"], grp.getgrnam, "gr_gid")
        elif wanted["owner"].isdigit():
            self.gid = int(wanted["owner"])
        else:
            self.gid = identity(wanted["owner"], pwd.getpwnam, "pw_gid")
        # In check mode the package that brings the user is not installed yet: that is no error, only a difference.
        if (
            (self.uid is None or self.gid is None)
            and self.state != "absent"
            and not module.check_mode
        ):
            missing = wanted["owner"] if self.uid is None else wanted["group"]
            module.fail_json(
                msg=f"managed_files: {self.path} wants owner or group '{missing}', which this host does not have."
            )

    def current(self):
        try:
            return os.lstat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def text(self):
        try:
            with open(self.path, encoding="utf-8", errors="replace", newline="") as file:
                return file.read()
        except OSError:
            return ""

    def apply(self):
        """Make it so (unless in check mode); returns a diff entry when something differed, else None."""
        status = self.current()
        if self.state == "absent":
            return self._remove(status)
        attributes_before = self._attributes(status)
        before, after = "", ""
        differs = status is None
        if self.state == "directory":
            if status is not None and not stat.S_ISDIR(status.st_mode):
                self.module.fail_json(
                    msg=f"managed_files: {self.path} should be a directory but is a file; move it away."
                )
        else:
            if status is not None and not stat.S_ISREG(status.st_mode):
                self.module.fail_json(
                    msg=f"managed_files: {self.path} should be a file but is not a regular one; move it away."
                )
            before = self.text() if status is not None else ""
            if self.wanted["json"] is not None:
                after = self._merged(before)
            elif status is not None and self.wanted["create_only"]:
                after = before
            else:
                after = self.wanted["content"]
            differs = differs or before != after
        wanted_attributes = (self.mode, self.uid, self.gid)
        if not differs and attributes_before == wanted_attributes:
            return None
        if not self.module.check_mode:
            self._write(differs, after)
        return self._diff(before, after, attributes_before, wanted_attributes)

    def _merged(self, before):
        try:
            current = json.loads(before) if before.strip() else {}
        except ValueError as error:
            self.module.fail_json(
                msg=f"managed_files: {self.path} is no JSON ({error}); correct it or move it away."
            )
        merged = merge(current, self.wanted["json"])
        # Equal data in another layout is no difference: it is somebody else's file too.
        return (
            before
            if merged == current and before
            else json.dumps(merged, indent=4, sort_keys=True) + "\n"
        )

    def _write(self, differs, content):
        if self.state == "directory":
            os.makedirs(self.path, exist_ok=True)
            os.chown(self.path, self.uid, self.gid)
            os.chmod(self.path, self.mode)
            return
        if not differs:
            os.chown(self.path, self.uid, self.gid)
            os.chmod(self.path, self.mode)
            return
        parent = os.path.dirname(self.path)
        os.makedirs(parent, exist_ok=True)
        # Beside the target, so that the rename is atomic; 0600 from mkstemp, so that a secret is never readable.
        handle, temporary = tempfile.mkstemp(
            dir=parent, prefix="." + os.path.basename(self.path) + "."
        )
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chown(temporary, self.uid, self.gid)
            os.chmod(temporary, self.mode)
            if self.wanted["validate"]:
                self._validate(temporary)
            self._remember()
            os.rename(temporary, self.path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)

    def _validate(self, temporary):
        if "%s" not in self.wanted["validate"]:
            self.module.fail_json(
                msg=f"managed_files: validate of {self.path} must contain %s: {self.wanted['validate']}"
            )
        command = self.wanted["validate"] % temporary
        code, out, err = self.module.run_command(command)
        if code != 0:
            # A failed task notifies nobody, and the next run would find these files right and reload nothing either.
            for restore in reversed(self.undo):
                restore()
            self.module.fail_json(
                msg=f"managed_files: '{command}' refused the new {self.path}; it and the files before it are as they were. "
                f"It said: {(err or out).strip()[-1500:]}"
            )

    def _remember(self):
        status = self.current()
        if status is None:
            self.undo.append(lambda: os.unlink(self.path))
            return
        with open(self.path, "rb") as file:
            content = file.read()

        def restore():
            handle, temporary = tempfile.mkstemp(
                dir=os.path.dirname(self.path), prefix=".restored."
            )
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chown(temporary, status.st_uid, status.st_gid)
            os.chmod(temporary, stat.S_IMODE(status.st_mode))
            os.rename(temporary, self.path)

        self.undo.append(restore)

    def _remove(self, status):
        if status is None:
            return None
        if not self.module.check_mode:
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(self.path)
            else:
                os.unlink(self.path)
        return {
            "before_header": self.path,
            "after_header": self.path,
            "before": "present\n",
            "after": "absent\n",
        }

    @staticmethod
    def _attributes(status):
        return (
            None if status is None else (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
        )

    def _diff(self, before, after, attributes_before, attributes_after):
        if self.wanted["secret"]:
            before, after = (
                ("", "") if before == after else ("<secret before>\n", "<secret after>\n")
            )
        before, after = (
            text if len(text) < 20000 else f"<{len(text)} characters>\n" for text in (before, after)
        )
        entry = {
            "before_header": self.path,
            "after_header": self.path,
            "before": before,
            "after": after,
        }
        if attributes_before != attributes_after:
            for key, value in (("before", attributes_before), ("after", attributes_after)):
                line = (
                    "absent"
                    if value is None
                    else f"mode {value[0]:04o} owner {value[1]}:{value[2]}"
                )
                entry[key] = f"# {line}\n" + entry[key]
        return entry


def main():
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "state": {
                        "type": "str",
                        "choices": ["file", "directory", "absent"],
                        "default": "file",
                    },
                    "content": {"type": "str"},
                    "json": {"type": "dict"},
                    "create_only": {"type": "bool", "default": False},
                    "mode": {"type": "str"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str"},
                    "validate": {"type": "str"},
                    "secret": {"type": "bool", "default": False},
                },
            },
        },
        supports_check_mode=True,
    )
    for wanted in module.params["files"]:
        if wanted["secret"] and wanted["content"]:
            module.no_log_values.add(wanted["content"])
    diffs, paths, undo = [], [], []
    for wanted in module.params["files"]:
        entry = File(module, wanted, undo).apply()
        if entry:
            diffs.append(entry)
            paths.append(wanted["path"])
    module.exit_json(changed=bool(paths), paths=paths, diff=diffs)


if __name__ == "__main__":
    main()
