"""Submit a training run, or a catalogue that is built in parts, to Slurm.

python launchers/submit.py pretrain --config launchers/configs/stage1.yaml \\
    --deepspeed_config ds_configs/v100x16_stage1.json --nodes 2 --gpus 8 --time 24:00:00
python launchers/submit.py catalog items.jsonl --images images/ --out data/catalog --parts 8 --cpus 16
"""

from mbsd.cli.submit import main

if __name__ == "__main__":
    main()
