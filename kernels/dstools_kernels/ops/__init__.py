"""Operations of a model in torch: the definitions that faster kernels are compared with."""
