"""Drives every command of a daemon with qemu.qmp, a client that nobody of this project wrote.

Called with the path of its socket, in a folder with the image a.qcow2. Each command that the daemon lists is called with arguments that succeed, and
with others that fail; the first thing that goes otherwise ends the program with an exception.
"""

import asyncio
import sys

from qemu.qmp import ExecuteError, QMPClient

# Jobs that commands start are over at once, and none of them copies: these find none that they could be for.
WITHOUT_JOBS = {
    "block-job-cancel", "block-job-complete", "block-job-dismiss", "block-job-finalize", "block-job-pause",
    "block-job-resume", "block-job-set-speed", "job-cancel", "job-complete", "job-finalize", "job-pause", "job-resume",
}


def node(driver, name, **more):
    return {"driver": driver, "node-name": name, **more}


Q = {"node": "q"}
BITMAP = {"node": "q", "name": "b"}
DISK = {"size": 1 << 20, "read-zeroes": True}
REOPENED = node("qcow2", "q", file="f", **{"lazy-refcounts": True})

# Commands with arguments, in an order in which all of them succeed.
GOOD = [
    ("query-version", {}),
    ("query-commands", {}),
    ("query-qmp-schema", {}),
    ("query-jobs", {}),
    ("query-block-jobs", {}),
    ("query-block-exports", {}),
    ("object-add", {"qom-type": "iothread", "id": "io", "poll-max-ns": 1000}),
    ("object-add", {"qom-type": "throttle-group", "id": "tg", "limits": {"iops-total": 100000}}),
    ("query-iothreads", {}),
    ("qom-list", {"path": "/objects"}),
    ("qom-get", {"path": "/objects/tg", "property": "limits"}),
    ("qom-set", {"path": "/objects/io", "property": "poll-max-ns", "value": 2000}),
    ("blockdev-add", node("file", "f", filename="a.qcow2")),
    ("blockdev-add", node("qcow2", "q", file="f")),
    ("blockdev-add", node("throttle", "t", file=node("null-co", "n", **DISK), **{"throttle-group": "tg"})),
    ("blockdev-reopen", {"options": [REOPENED]}),
    ("block_resize", {"node-name": "q", "size": 2 << 20}),
    ("block-dirty-bitmap-add", {"granularity": 65536, **BITMAP}),
    ("block-dirty-bitmap-add", {"name": "c", "disabled": True, **Q}),
    ("block-dirty-bitmap-enable", {"name": "c", **Q}),
    ("block-set-write-threshold", {"node-name": "q", "write-threshold": 4096}),
    ("human-monitor-command", {"command-line": 'qemu-io q "write -q 0 64k"'}),
    ("block-dirty-bitmap-merge", {"target": "c", "bitmaps": ["b"], **Q}),
    ("query-named-block-nodes", {"flat": True}),
    ("x-debug-query-block-graph", {}),
    ("x-debug-block-dirty-bitmap-sha256", BITMAP),
    ("block-dirty-bitmap-disable", BITMAP),
    ("block-dirty-bitmap-clear", BITMAP),
    ("block-dirty-bitmap-remove", BITMAP),
    ("x-blockdev-set-iothread", {"node-name": "t", "iothread": "io"}),
    ("x-blockdev-set-iothread", {"node-name": "t", "iothread": None}),
    ("blockdev-snapshot-internal-sync", {"device": "q", "name": "s"}),
    ("blockdev-snapshot-delete-internal-sync", {"device": "q", "name": "s"}),
    ("blockdev-add", node("file", "of", filename="b.qcow2")),
    ("blockdev-create", {"job-id": "j1", "options": {"driver": "qcow2", "file": "of", "size": 2 << 20}}),
    ("job-dismiss", {"id": "j1"}),
    ("blockdev-add", node("file", "df", filename="d.raw")),
    ("blockdev-create", {"job-id": "j3", "options": {"driver": "qcow2", "size": 1 << 20, "data-file": "df",
                                                     "file": {"driver": "file", "filename": "d.qcow2"}}}),
    ("job-dismiss", {"id": "j3"}),
    ("blockdev-add", node("qcow2", "o", file="of", backing=None)),
    ("x-blockdev-amend", {"job-id": "j2", "node-name": "o", "options": {"driver": "qcow2"}}),
    ("job-dismiss", {"id": "j2"}),
    ("blockdev-add", node("null-co", "m", **DISK)),
    ("device_add", {"driver": "disk", "id": "hd", "drive": "q"}),
    ("block_resize", {"device": "hd", "size": 2 << 20}),
    ("blockdev-snapshot-internal-sync", {"device": "hd", "name": "s"}),
    ("blockdev-snapshot-delete-internal-sync", {"device": "hd", "name": "s"}),
    ("blockdev-snapshot-sync", {"node-name": "q", "snapshot-file": "c.qcow2", "snapshot-node-name": "p"}),
    ("change-backing-file", {"device": "p", "image-node-name": "p", "backing-file": "a.qcow2"}),
    ("blockdev-snapshot", {"node": "p", "overlay": "o"}),
    ("transaction", {"actions": [{"type": "block-dirty-bitmap-add", "data": {"node": "n", "name": "x"}}]}),
    ("device_add", {"driver": "cd", "id": "cd"}),
    ("block_set_io_throttle", {"id": "hd", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 100, "iops_rd": 0, "iops_wr": 0}),
    ("block-latency-histogram-set", {"id": "hd", "boundaries": [1000, 1000000]}),
    ("query-blockstats", {}),
    ("query-blockstats", {"query-nodes": True}),
    ("blockdev-add", node("quorum", "quo", children=[DISK | {"driver": "null-co"}], **{"vote-threshold": 1})),
    ("blockdev-add", node("null-co", "more", **DISK)),
    ("x-blockdev-change", {"parent": "quo", "node": "more"}),
    ("x-blockdev-change", {"parent": "quo", "child": "children.0"}),
    ("blockdev-del", {"node-name": "quo"}),
    ("query-block", {}),
    ("cont", {}),
    ("blockdev-open-tray", {"id": "cd"}),
    ("blockdev-insert-medium", {"id": "cd", "node-name": "m"}),
    ("blockdev-close-tray", {"id": "cd"}),
    ("query-block", {}),
    ("x-guest-act", {"id": "cd", "act": "lock"}),
    ("eject", {"id": "cd", "force": True}),
    ("blockdev-remove-medium", {"id": "cd"}),
    ("blockdev-change-medium", {"id": "cd", "filename": "c.iso", "format": "raw"}),
    ("device_del", {"id": "cd"}),
    ("device_del", {"id": "hd"}),
    ("blockdev-del", {"node-name": "t"}),
    ("object-del", {"id": "tg"}),
    ("object-del", {"id": "io"}),
    ("blockdev-del", {"node-name": "o"}),
    ("blockdev-del", {"node-name": "q"}),
]

# Arguments that make sense, but for what is not there; the others get one that nobody knows.
MISSING = {
    "block-dirty-bitmap-add": {"node": "nope", "name": "b"},
    "block-dirty-bitmap-clear": {"node": "nope", "name": "b"},
    "block-dirty-bitmap-disable": {"node": "nope", "name": "b"},
    "block-dirty-bitmap-enable": {"node": "nope", "name": "b"},
    "block-dirty-bitmap-merge": {"node": "nope", "target": "b", "bitmaps": []},
    "block-dirty-bitmap-remove": {"node": "nope", "name": "b"},
    "x-debug-block-dirty-bitmap-sha256": {"node": "nope", "name": "b"},
    "block-job-cancel": {"device": "nope"},
    "block-job-complete": {"device": "nope"},
    "block-job-dismiss": {"id": "nope"},
    "block-job-finalize": {"id": "nope"},
    "block-job-pause": {"device": "nope"},
    "block-job-resume": {"device": "nope"},
    "block-job-set-speed": {"device": "nope", "speed": 0},
    "block-latency-histogram-set": {"id": "nope"},
    "block_set_io_throttle": {"id": "nope", "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0},
    "blockdev-change-medium": {"id": "nope", "filename": "x"},
    "blockdev-close-tray": {"id": "nope"},
    "blockdev-create": {"job-id": "j", "options": {"driver": "nope"}},
    "blockdev-insert-medium": {"id": "nope", "node-name": "nope"},
    "blockdev-open-tray": {"id": "nope"},
    "blockdev-remove-medium": {"id": "nope"},
    "blockdev-snapshot": {"node": "nope", "overlay": "nope"},
    "blockdev-snapshot-delete-internal-sync": {"device": "nope", "name": "s"},
    "blockdev-snapshot-internal-sync": {"device": "nope", "name": "s"},
    "blockdev-snapshot-sync": {"node-name": "nope", "snapshot-file": "x"},
    "change-backing-file": {"device": "nope", "image-node-name": "nope", "backing-file": "x"},
    "device_add": {"driver": "nope", "id": "x"},
    "device_del": {"id": "nope"},
    "eject": {"id": "nope"},
    "transaction": {"actions": [{"type": "abort", "data": {}}]},
    "x-blockdev-amend": {"job-id": "j", "node-name": "nope", "options": {"driver": "qcow2"}},
    "x-blockdev-change": {"parent": "nope", "node": "nope"},
    "x-guest-act": {"id": "nope", "act": "lock"},
    "block-set-write-threshold": {"node-name": "nope", "write-threshold": 0},
    "block_resize": {"node-name": "nope", "size": 0},
    "blockdev-add": node("raw", "x", file="nope"),
    "blockdev-del": {"node-name": "nope"},
    "blockdev-reopen": {"options": [node("raw", "nope", file="nope")]},
    "job-cancel": {"id": "nope"},
    "job-complete": {"id": "nope"},
    "job-dismiss": {"id": "nope"},
    "job-finalize": {"id": "nope"},
    "job-pause": {"id": "nope"},
    "job-resume": {"id": "nope"},
    "object-add": {"qom-type": "nope", "id": "x"},
    "object-del": {"id": "nope"},
    "qmp_capabilities": {},
    "qom-get": {"path": "/objects/nope", "property": "type"},
    "qom-list": {"path": "/objects/nope"},
    "qom-set": {"path": "/objects/nope", "property": "type", "value": 1},
    "x-blockdev-set-iothread": {"node-name": "nope", "iothread": None},
}


async def refused(client, command, arguments):
    try:
        answer = await client.execute(command, arguments)
    except ExecuteError as error:
        assert error.error_class and str(error), error
        return str(error)
    raise AssertionError(f"{command} {arguments} is not refused: {answer}")


async def concluded(client, job):
    for _ in range(3000):
        state = next(each for each in await client.execute("query-jobs") if each["id"] == job)
        if state["status"] == "concluded":
            assert "error" not in state, state
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{job} does not end")


async def main():
    client = QMPClient("cairn")
    await client.connect(sys.argv[1])
    known = {command["name"] for command in await client.execute("query-commands")}
    told = {entry["name"] for entry in await client.execute("query-qmp-schema") if entry["meta-type"] == "command"}
    assert known == told, known ^ told
    # The client has said the one, and says the other at the end.
    covered = {command for command, _ in GOOD} | WITHOUT_JOBS | {"qmp_capabilities", "quit"}
    assert covered == known, covered ^ known

    with client.listener("BLOCK_WRITE_THRESHOLD") as events:
        for command, arguments in GOOD:
            answer = await client.execute(command, arguments)
            assert answer is not None, command
            if command == "blockdev-create" or command == "x-blockdev-amend":
                await concluded(client, arguments["job-id"])
            if command == "query-block" and answer[1].get("inserted"):
                assert answer[1]["inserted"]["node-name"] == "m" and answer[1]["tray_open"] is False, answer
            if command == "human-monitor-command":
                assert answer == "", answer
                event = await asyncio.wait_for(events.get(), 30)
                assert event["data"]["node-name"] == "q" and event["data"]["amount-exceeded"] == 61440, event
            if command == "query-named-block-nodes":
                dirty = next(each for each in answer if each["node-name"] == "q")["dirty-bitmaps"]
                assert [each["count"] for each in dirty] == [65536, 65536], dirty

    for command in sorted(known):
        if command in MISSING:
            await refused(client, command, MISSING[command])
        if command != "qmp_capabilities":
            desc = await refused(client, command, {"bogus": 1})
            assert "bogus" in desc or "is missing" in desc, (command, desc)
    desc = await refused(client, "nope", {})
    assert desc == "The command nope has not been found", desc
    # Several at once are answered each to whoever asked.
    many = await asyncio.gather(*(client.execute("qom-list", {"path": "/"}) for _ in range(50)))
    assert all(answer == many[0] for answer in many)
    await client.execute("quit")
    await client.disconnect()
    print(f"{len(known)} commands")


asyncio.run(main())
