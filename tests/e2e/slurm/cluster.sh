#!/usr/bin/env bash
# cluster.sh start FOLDER | stop FOLDER: a Slurm of its own on this machine, as root: munge, a
# controller, and two nodes n1 and n2 with CPUS processors each (2), which are the same real ones.
# SLURM_CONF=FOLDER/slurm.conf then makes sbatch, srun and scancel talk to it.
set -euo pipefail
folder=$2

stop() {
  local name pid
  for name in slurmctld slurmd-n1 slurmd-n2 munged; do
    pid=$(cat "$folder/$name.pid" 2>/dev/null) || continue
    kill "$pid" 2>/dev/null || continue
    for _ in {1..100}; do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

# A port nobody listens on now.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 10000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}

start() {
  mkdir -p "$folder"/{state,spool-n1,spool-n2,munge}
  chmod 0755 "$folder" "$folder/munge"
  dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none
  chmod 0400 "$folder/munge.key"
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge/socket" \
    --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=omnitrain
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmctldParameters=enable_configless
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
TaskPluginParam=autobind=cores
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobRequeue=1
SlurmdParameters=config_overrides
SlurmdTimeout=30
SchedulerParameters=sched_min_interval=100000,bf_interval=1
KillWait=20
OverTimeLimit=0
NodeName=n1 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$(free_port) CPUs=${CPUS:-2}
NodeName=n2 NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=$(free_port) CPUs=${CPUS:-2}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=15
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
  export SLURM_CONF=$folder/slurm.conf
  slurmctld -c
  slurmd -N n1
  slurmd -N n2
  for _ in {1..300}; do
    [[ $(sinfo -h -t idle -o %D 2>/dev/null) == 2 ]] && return
    sleep 0.2
  done
  sinfo -N -l >&2 || true
  tail -n 20 "$folder"/*.log >&2
  exit 1
}

"$1"
