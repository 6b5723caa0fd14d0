"""The lecture's accounting of memory and traffic, and why what is built here differs from it; plain arithmetic.

Mixed precision with Adam, P parameters on N devices, bytes a device (Rajbhandari et al. 2020, ZeRO):

    parameters 2 P (fp16)   gradients 2 P (fp16)   optimizer 12 P (fp32: weights, two moments)
    zero1 divides the optimizer by N, zero2 the gradients too, zero3 the parameters too

Traffic of a step in parameters: 2 P for ddp, zero1 and zero2 (a reduce-scatter and an all-gather), 3 P for zero3, which
gathers for the forward and for the backward.
"""

from __future__ import annotations

from fractions import Fraction

PARAMETERS, GRADIENTS, OPTIMIZER = 2, 2, 12  # bytes for each parameter
# Which of the three are divided by the number of devices.
SHARDED = {"single": (), "ddp": (), "zero1": ("optimizer",), "zero2": ("gradients", "optimizer")}
ALL = ("parameters", "gradients", "optimizer")


def memory(num_parameters: int, strategy: str, num_devices: int) -> dict[str, Fraction]:
    """Bytes of parameters, gradients and optimizer on each device."""
    shared = SHARDED.get(strategy, ALL)
    whole = dict(zip(ALL, (PARAMETERS, GRADIENTS, OPTIMIZER), strict=True))
    return {part: Fraction(size * num_parameters, num_devices if part in shared else 1) for part, size in whole.items()}


def traffic(strategy: str, num_devices: int) -> int:
    """Parameters that a step communicates, over the number of parameters; the ring's (N - 1) / N left out."""
    if strategy == "single" or num_devices == 1:
        return 0
    return 3 if strategy in ("zero3", "fsdp") else 2


def differences(strategy: str, precision: str) -> list[str]:
    """Why a strategy as it is built holds or sends something else."""
    found = [
        "parameters are the fp32 master weights themselves (4 bytes, not 2 + 4), gradients are fp32 (4 bytes, not 2), "
        "and the optimizer is the two moments (8 bytes, not 12): 16 bytes in both"
    ]
    if precision == "bf16":
        found.append("bf16 copies of linear weights exist while a step is computed alone; the paper has them always")
    if strategy in REASONS:
        found.append(REASONS[strategy])
    if strategy in ("zero2", "zero3", "fsdp"):
        found.append(VALIDATION)
    return found


REASONS = {
    "zero1": (
        "gradients are reduced whole (2 P) and the new weights broadcast by their owners (1 P): 3 P, where the paper's "
        "reduce-scatter gives each owner its gradients alone; whole tensors are dealt out, so shares are uneven"
    ),
    "zero2": (
        "FSDP2 shards the weights between steps too; they are whole only from the forward to the end of the backward, "
        "and then on top of the shards; every microbatch gathers them, where the paper counts one"
    ),
    "zero3": (
        "embeddings, head and final norms stay gathered between forward and backward, so they are gathered once, not "
        "twice; every microbatch gathers again, where the paper counts one"
    ),
}
REASONS["fsdp"] = f"as zero3: {REASONS['zero3']}; gather=bf16 halves what layers gather, not what gradients send"
VALIDATION = "validation gathers a whole copy of the weights on every device"
