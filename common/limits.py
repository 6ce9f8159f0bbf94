"""Every size, count, depth and time limit for data that comes from people, disks or the network.

Each constant says its unit in its name and its reason beside it. Nothing else in the project invents a limit.
"""

from __future__ import annotations

from typing import Final

# ---- Link -----------------------------------------------------------------------------------------------------------
FRAME_MAX_BYTES: Final = 1 << 20  # one frame on the wire; libzmq drops the peer above this before we allocate
CURVE_OVERHEAD_BYTES: Final = 1_024  # libzmq counts the sealed message: 33 bytes more; the rest is room
FRAME_PLAIN_MAX_BYTES: Final = 8 << 20  # one frame after decompression; stops zstd bombs (ratio 8 is typical, 1000 is not)
BATCH_MAX_EVENTS: Final = 2_000  # past this SQLite's insert no longer gets cheaper per row
BATCH_MAX_BYTES: Final = 512 << 10  # plain bytes of events in a batch: keeps a 64 kbit/s link's batch under 20 s compressed
CHUNK_BYTES: Final = 64 << 10  # one piece of a bundle: what a cut on a bad link costs at most
UNACKED_MAX_BATCHES: Final = 8  # credits: batches a minion may have in flight
HELLO_MAX_ITEMS: Final = 1_024  # labels, backends, held digests in one hello
STRING_MAX_CHARS: Final = 4_096  # any single string in a frame that is not event data
PEER_DEAD_S: Final = 20.0  # no traffic for this long: the peer is gone
HANDSHAKE_MAX_S: Final = 20.0  # slow-loris: closed if CURVE has not finished by then; a storm on a slow machine takes 10 s
RECONNECT_MIN_S: Final = 0.5
RECONNECT_MAX_S: Final = 30.0  # after a refusal: the master has something to do with every attempt
UNREACHABLE_MAX_S: Final = 4.0  # between attempts that reach nobody: they cost a packet and decide how soon a link heals
CONNECT_MAX_S: Final = 5.0  # TCP connect; covers two lost SYNs, and bounds what a cut costs after it has healed
IDLE_PING_S: Final = 8.0  # nothing sent for this long: a Ping, so that the peer hears from us twice in PEER_DEAD_S
ACK_MAX_S: Final = 120.0  # a batch unacknowledged for this long: the connection is made anew and the batch sent again
LINGER_S: Final = 0.2  # lanes other than ALERT wait this long for company when the pipe is idle
COMPANY_MAX_S: Final = 5.0  # a small batch without an ack holds the next one back so long, unless that is one of alerts
CHUNK_MAX_S: Final = 15.0  # a requested chunk that has not come by then is asked for again
CHUNKS_IN_FLIGHT: Final = 4  # requested at once: fills 256 KiB of a long path
FETCH_MAX_S: Final = 600.0  # without any progress, over all reconnects, before a fetch gives up
LINK_WORKS_MAX: Final = 512  # jobs and assignments of the master in work at once; more is refused
WELCOME_WAIT_MAX_S: Final = 120.0  # a node waits so long for its welcome, if the master says that its turn comes
PENDING_KEYS_MAX: Final = 256  # refused keys remembered for `garrison nodes pending`

# ---- Relay ----------------------------------------------------------------------------------------------------------
SIGNED_FRAME_MAX_BYTES: Final = FRAME_MAX_BYTES - 4_096  # of a signed message: it must fit into a frame, and that into another
SIGNED_PLAIN_MAX_BYTES: Final = (
    1 << 20
)  # of a signed batch unpacked: twice BATCH_MAX_BYTES; bounds what many in one frame unpack to
FORWARD_MAX_ITEMS: Final = 64  # signed batches in one message of a relay: 64 MiB unpacked at worst
RELAYED_HELLO_MAX_BYTES: Final = 64 << 10  # of a node's hello, which its relay passes on; an agent's takes about 1 KB
RELAY_NODES_MAX: Final = 4_096  # nodes behind one relay: their list fits a frame
RELAY_CACHE_MAX_BYTES: Final = 1 << 30  # blobs kept at a relay: sixteen largest bundles; the least recently read goes first
PRESENCE_S: Final = 1.0  # a relay tells changes of its nodes at most so often

# ---- Events ---------------------------------------------------------------------------------------------------------
EVENT_MAX_BYTES: Final = 16 << 10  # one encoded event; a longer argv is cut and marked by the observer
EVENT_ARGS_MAX: Final = 64  # arguments kept of one command
EVENT_ARG_MAX_CHARS: Final = 512  # characters kept of one argument
EVENT_LABELS_MAX_BYTES: Final = 1_024  # of a container's labels in an alert, which may hold two paths and 2 KiB of arguments
EVENT_DATA_MAX_KEYS: Final = 128  # keys in Event.data
PATH_MAX_BYTES: Final = 4_096  # linux/limits.h PATH_MAX

# ---- Observers ------------------------------------------------------------------------------------------------------
SAMPLE_DISKS_MAX: Final = 8  # four figures each; with the limits below a sample stays under EVENT_DATA_MAX_KEYS
SAMPLE_INTERFACES_MAX: Final = 8  # four figures each, the busiest first
SAMPLE_SENSORS_MAX: Final = 8
LOG_LINE_MAX_BYTES: Final = 64 << 10  # of one line of a log file; the rest of it is skipped up to its end
LOG_READ_MAX_BYTES: Final = 1 << 20  # of one log file per turn: a huge backlog must not keep the others waiting
LOG_MESSAGE_MAX_BYTES: Final = 8 << 10  # of one error message; longer ones lose their middle
LOG_BLOCK_MAX_LINES: Final = 200  # lines joined into one message, e.g. a traceback
JOURNAL_LINE_MAX_BYTES: Final = 1 << 20  # one journal entry as JSON; journald's own limit for a line is 48 KiB
ERROR_GROUPS_MAX: Final = 512  # kinds of messages told apart per window; what is beyond shares one count
ERROR_WINDOW_S: Final = 10.0  # after it, suppressed repeats are told as one event with their exact count
ERROR_REPEATS_MAX: Final = 5  # of one kind per window that pass singly
ERROR_PASSES_MAX: Final = 200  # of all kinds per window and source that pass singly: 20 errors a second

# ---- Spool ----------------------------------------------------------------------------------------------------------
SPOOL_COMMIT_MAX_S: Final = 0.010  # a lone alert is durable within 20 ms; half of it is waiting for company
SPOOL_COMMIT_MAX_EVENTS: Final = 1_000  # 202 k events/s at 1,000 per commit measured against 134 k at 100
SPOOL_QUEUE_MAX_EVENTS: Final = 50_000  # in memory before the writer; above it events become gap records
SPOOL_QUEUE_MAX_BYTES: Final = 16 << 20  # the same in bytes: the agent promises to stay small
SPOOL_SEGMENT_MAX_BYTES: Final = 64 << 10  # events stored as one row: what one damaged page can cost at most
SPOOL_CHECK_MAX_BYTES: Final = 64 << 20  # checked whole at the start up to this size (0.2 s); larger ones as they are read
SPOOL_RETRY_MAX_S: Final = 1.0  # between attempts to commit on a disk that refuses
SPOOL_WAL_MAX_BYTES: Final = 4 << 20  # write-ahead log before it is checkpointed; a 32nd of a small spool
SPOOL_REOPEN_SKIP: Final = 1 << 20  # numbers left unused at each opening: more than a lying disk can lose of the log's end

# ---- Policy ---------------------------------------------------------------------------------------------------------
POLICY_FILE_MAX_BYTES: Final = 1 << 20
POLICY_DOCUMENTS_MAX: Final = 1_000  # YAML documents in one file
YAML_DEPTH_MAX: Final = 32  # nesting of a policy document
YAML_NODES_MAX: Final = 200_000  # after alias expansion: stops "billion laughs"
RULES_MAX: Final = 65_536  # rules on one node
GLOB_ALTERNATIVES_MAX: Final = 256  # {a,b} expansions of one pattern
GLOB_STARS_MAX: Final = 32  # stars in one pattern: bounds the time of one match
GLOB_STATES_MAX: Final = 65_536  # of the automaton of all globs on a node: about 4 MB of kernel memory
LSM_NODES_MAX: Final = 1 << 20  # path components of all rules together
LSM_RECORDS_MAX: Final = 1 << 18  # ways in which targets and sources of rules meet: 8 bytes of kernel memory each
NFT_ELEMENTS_MAX: Final = (
    1 << 18
)  # ways in which addresses and ports of firewall rules meet: about 200 bytes of kernel memory each
NFT_MAX_S: Final = 60.0  # one call of nft; 10,000 rules take 2 s
LSM_PROFILES_MAX: Final = 1_022  # ways in which workloads of a node are selected; 10 bits, two of whose numbers have a meaning
LSM_WORKLOADS_MAX: Final = 16_384  # cgroups of workloads on one node: 16 bytes of kernel memory each, used or not, twice
ALLOWED_ARGS_MAX: Final = 20  # KubeArmor's own limit

# ---- Workloads ------------------------------------------------------------------------------------------------------
WORKLOADS_MAX: Final = 4_096  # told to the enforcers: what the kernel's table of cgroups holds
WORKLOAD_LABELS_MAX: Final = 128  # of one workload, ours included; Kubernetes pods carry about ten
WORKLOAD_LABEL_MAX_CHARS: Final = 512  # of one "key=value": in Kubernetes a prefix of 253, a name of 63, a value of 63
WORKLOAD_NAME_MAX_CHARS: Final = 255  # of a unit, container, image or user: systemd's own limit for a unit
WORKLOAD_FILE_MAX_BYTES: Final = 1 << 20  # one file of a container engine or systemd; Docker's config.v2.json takes about 5 KB
WORKLOAD_READ_MAX_S: Final = 2.0  # for what a user's own file system may hold up: rootless state below a home directory
BOLT_READ_MAX_BYTES: Final = 4 << 20  # of one look-up; it reads a page of 4 KiB for each level of the tree
UNIT_FILES_MAX: Final = 8_192  # unit files and drop-ins of a node; a full Debian server has about 500
WORKLOADS_OF_USER_MAX: Final = 512  # cgroups in one user's slice: a user may make any number, and nobody else must suffer
CGROUP_WATCHES_MAX: Final = 16_384  # directories of the cgroup tree that are watched for new ones
CGROUP_DEPTH_MAX: Final = 10  # rootless container in a pod of a user's service: user.slice/user-N/user@N/app/unit/pod/container

# ---- Bundles --------------------------------------------------------------------------------------------------------
BUNDLE_FILES_MAX: Final = 10_000
BUNDLE_FILE_MAX_BYTES: Final = 4 << 20
BUNDLE_MAX_BYTES: Final = 64 << 20
METADATA_MAX_BYTES: Final = 16 << 20  # signed metadata; 10,000 nodes with labels take about 2 MB
ROOT_ROTATIONS_MAX: Final = 256  # python-tuf's own default
ROOT_MAX_BYTES: Final = 512 << 10  # one root metadata file; python-tuf's own default
BUNDLE_NODES_MAX: Final = 100_000  # ten times the largest fleet aimed at
LABELS_MAX: Final = 256  # labels of one node
LABEL_MAX_CHARS: Final = 253  # of a label's key or value: a DNS name, as Kubernetes allows for the prefix of a key
VERSION_STEP_MAX: Final = 1_000_000  # how far a generation or bundle version may jump: a stolen key cannot burn all numbers
VERSION_MAX: Final = (1 << 53) - 1  # the largest integer that every JSON reader keeps exact
QUARANTINE_MAX: Final = 64  # assignments remembered as having failed on this node
GENERATIONS_KEPT: Final = 3  # the current one and two to fall back to
CONFIRM_MIN_S: Final = 5  # shorter, and a slow machine has not even asked its master
CONFIRM_MAX_S: Final = 86_400  # longest time a node may wait for a confirmation
CONFIRM_DEFAULT_S: Final = 120  # as netplan try: a person can still mend something by hand meanwhile
CONFIRM_MARGIN_S: Final = 5.0  # the agent goes back so long before the deadman would end it, a quarter of a short time
CONFIRM_TRIES_MAX: Final = 2  # of a generation during which the machine went down: a power cut is no proof, two are
ARMING_MAX_S: Final = 20.0  # until the deadman says that it waits; an emulated CPU takes two
PROBE_ROUNDS: Final = 3  # of local probes that count, the newest ones
PROBE_PASSES: Final = 2  # of these must be good, the newest among them: one good answer may be luck, one bad one a hiccup
PROBE_FAILURES_MAX: Final = 10  # bad rounds in a row, a second apart, and the rest of the time is not waited for
PROBE_MAX_S: Final = 5.0  # for one probe to answer

# ---- Boot -----------------------------------------------------------------------------------------------------------
BOOT_FAILURES_MAX: Final = 3  # boots in a row that never became healthy before the stored policy is doubted
BOOT_HEALTHY_S: Final = 30.0  # applied and turning for this long makes a boot a good one: sshd and getty have started by then
EARLY_ENFORCE_MAX_S: Final = 30.0  # what early enforcement may cost a boot; loading takes under a second, 6 s in emulation
BOOT_FILE_MAX_BYTES: Final = 64 << 10  # boot record, break-glass file, notes between processes

# ---- Trust ----------------------------------------------------------------------------------------------------------
KEY_FILE_MAX_BYTES: Final = 16 << 10  # an Ed25519 key in PEM takes 119 bytes
JOIN_FILE_MAX_BYTES: Final = 2 << 20  # two root metadata files and a few lines
JOIN_MASTERS_MAX: Final = 16  # addresses of a master in one join file

# ---- Jobs -----------------------------------------------------------------------------------------------------------
JOB_OUTPUT_MAX_BYTES: Final = 4 << 20  # per node and job; the rest is counted and dropped
JOB_OUTPUT_CHUNK_BYTES: Final = 32 << 10
JOB_ARGV_MAX: Final = 1_024
JOB_TIMEOUT_MAX_S: Final = 86_400.0
JOBS_RUNNING_MAX: Final = 16  # on one node at once
JOBS_WAITING_MAX: Final = 256  # accepted and not yet started; more is refused
JOB_ENV_MAX: Final = 256  # variables given with a job
JOB_KILL_AFTER_S: Final = 5.0  # from TERM to KILL
JOBS_KEPT_MAX: Final = 4_096  # results in a node's journal: an id is not run twice as long as its result is kept
JOBS_OUTPUT_KEPT_BYTES: Final = 64 << 20  # output in a node's journal, the newest jobs'

# ---- API ------------------------------------------------------------------------------------------------------------
API_BODY_MAX_BYTES: Final = 96 << 20  # a whole bundle in base64
API_PAGE_MAX_EVENTS: Final = 100_000

# ---- Inventory ------------------------------------------------------------------------------------------------------
INVENTORY_MAX_BYTES: Final = 256 << 20  # what ansible-inventory prints; 10,000 hosts with variables take about 30 MB
INVENTORY_FILES_MAX: Final = 20_000  # beyond it nothing is remembered and each command asks Ansible
INVENTORY_TIMEOUT_S: Final = 120.0  # dynamic inventories ask clouds that page slowly
LIMIT_FILE_MAX_CHARS: Final = 4 << 20

# ---- Master ---------------------------------------------------------------------------------------------------------
SESSION_REQUESTS_MAX: Final = 32  # requests of one node in work at the master; more is a broken or hostile peer
STORE_WAITING_MAX_BYTES: Final = 64 << 20  # batches not yet durable at the master; above it nothing is read from the link
WELCOMES_AT_ONCE: Final = 64  # looked up together; small beside what a node waits by itself
WELCOME_HOLD_MAX_S: Final = 1.0  # a group of welcomes is held back so long while the store is behind
LISTEN_BACKLOG: Final = 4_096  # connections that wait to be accepted: somaxconn's default; one over it hangs for seconds
LINK_IO_THREADS_MAX: Final = 4  # of the master: a storm is handshakes, and these do them
CLONE_PROBE_S: Final = 5.0  # how long the first holder of a key may take to answer when a second one shows up
NODES_AT_ONCE_MAX: Final = 20_000  # accepted or retired by one request: twice the largest fleet of one master
JOB_NODES_MAX: Final = 20_000  # in one job: twice the largest fleet of one master
JOB_GRACE_S: Final = 30.0  # added to a job's timeout before a silent node counts as lost: stopping it and the way back
API_QUERY_MAX_VALUES: Final = 256  # values of one filter
