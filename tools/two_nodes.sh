#!/usr/bin/env bash
# Train on two "machines": two network namespaces, joined by a virtual cable, with one process each. One is killed in the
# middle, and both resume. Needs root, and the folder of the run on a disk that both see.
#
#     tools/two_nodes.sh FACES OUT [SETTING...]
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; }
faces=$1 out=$2
shift 2
command -v ip > /dev/null || { echo "error: the command ip is needed (Debian: iproute2)" >&2; exit 1; }

clean() { for node in 0 1; do ip netns del "showface$node" 2> /dev/null || true; done; }
trap clean EXIT
clean
for node in 0 1; do ip netns add "showface$node"; done
ip link add cable0 netns showface0 type veth peer name cable1 netns showface1
for node in 0 1; do
  ip -n "showface$node" address add "10.77.0.$((node + 1))/24" dev "cable$node"
  ip -n "showface$node" link set "cable$node" up
  ip -n "showface$node" link set lo up
done

# node NUMBER ARGUMENT...: one machine's part of `showface train`.
node() {
  local number=$1
  shift
  GLOO_SOCKET_IFNAME="cable$number" exec ip netns exec "showface$number" accelerate launch --multi_gpu --num_machines 2 \
    --num_processes 2 --machine_rank "$number" --main_process_ip 10.77.0.1 --main_process_port 29500 \
    --mixed_precision no --dynamo_backend no -m showface.cli train --out "$out" "$@"
}

node 0 --data "$faces" "$@" & first=$!
node 1 --data "$faces" "$@" & second=$!
until compgen -G "$out/checkpoints/step-*.pt" > /dev/null; do
  kill -0 $first 2> /dev/null || { echo "error: the run ended before its first checkpoint" >&2; exit 1; }
  sleep 0.2
done
kill -KILL -- $(pgrep -P $second) $second
echo "node 1 was killed after its first checkpoint"
wait $first && { echo "error: node 0 went on alone" >&2; exit 1; }
echo "node 0 ended with $?"

node 0 --resume & first=$!
node 1 --resume & second=$!
wait $first
wait $second
echo "both nodes finished"
