"""accelerate launch training/train_class_conditional.py --train_data_dir my_images --resolution 64

The same as `accelerate launch -m cond_pipelines.training --conditioning class ...`; --help lists every argument.
"""

from cond_pipelines.training.__main__ import main

if __name__ == "__main__":
    main(conditioning="class")
