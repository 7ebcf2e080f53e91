#!/bin/bash
# sbatch docs/scripts/slurm.sh: train-unet on 4 nodes of 8 GPUs, one torchrun a node. Adjust the lines marked with <-.
#SBATCH --job-name=ldm
#SBATCH --nodes=4                       # <-
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8               # <-
#SBATCH --cpus-per-task=64              # <-
#SBATCH --time=24:00:00                 # <-
#SBATCH --signal=TERM@300               # five minutes before the end: the run saves and exits with status 130
#SBATCH --requeue                       # after a node failure the job starts again, and --resume goes on
#SBATCH --open-mode=append
#SBATCH --output=runs/ldm-%j.txt

export HF_HUB_OFFLINE=1                 # nodes rarely reach the Hub
export OMP_NUM_THREADS=8
# On a disk of the node, where files are quick.
export LDM_CACHE=${SLURM_TMPDIR:-/tmp}/ldm
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# exec: the signal reaches srun, which hands it to torchrun, which hands it to the processes of its node.
exec srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" --nproc_per_node 8 \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$head:29500" \
    -m ldm train-unet my.yaml --data /data/pictures --vae runs/vae \
    --out runs/unet --resume --max-time 23h45m   # <- the same folder for all nodes, on a shared disk
