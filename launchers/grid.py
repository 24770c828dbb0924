"""A grid search over batch size and learning rate of a fine-tuning.

python launchers/grid.py --config launchers/configs/attributes.yaml --deepspeed_config ds_configs/h100_finetune.json \\
    --learning-rates 1e-5,2e-5,4e-5 --batch-sizes 64,128 --run.dir runs/grid
"""

from mbsd.cli.grid import main

if __name__ == "__main__":
    main()
