#!/bin/bash
# sbatch docs/scripts/slurm.sh: train-unet on 4 nodes of 8 GPUs, one torchrun per node. Adjust the lines marked with <-.
#SBATCH --job-name=ldm
#SBATCH --nodes=4                       # <-
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8               # <-
#SBATCH --cpus-per-task=64              # <-
#SBATCH --time=24:00:00                 # <-
#SBATCH --signal=TERM@300               # five minutes before the end: the run saves and exits with status 130
#SBATCH --requeue                       # after a node failure the job restarts, and --resume continues the run
#SBATCH --open-mode=append
#SBATCH --output=runs/ldm-%j.txt

export HF_HUB_OFFLINE=1                 # nodes rarely reach the Hub
export OMP_NUM_THREADS=8
# A local disk of the node is faster.
export LDM_CACHE=${SLURM_TMPDIR:-/tmp}/ldm
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# exec: the signal reaches srun, which forwards it to torchrun and the processes of the node.
exec srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node 8 \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$head:29500" \
    -m ldm train-unet my.yaml --data /data/images --vae runs/vae \
    --out runs/unet --resume --max-time 23h45m   # <- the same folder for all nodes, on a shared disk
