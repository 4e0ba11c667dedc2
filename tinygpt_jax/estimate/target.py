"""A card as XLA wants to be told of it, to compile for it without having it."""

from tinygpt_jax.cards import Card


def target_description(card: Card) -> str:
    """XLA's GpuTargetConfigProto as text.

    A field that XLA does not know is an error; one that is missing counts as 0, and ends the process (a division by
    it), or gives another program.
    Versions are those of CUDA 12.8 and cuDNN 9.10, with which XLA's own descriptions were taken.
    """
    generation = card.generation
    major, minor = generation.capability
    # From Hopper on, code for exactly this capability may use instructions that no later one has.
    extension = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    name = f"NVIDIA {card.name}"
    return f"""
        gpu_device_info {{
            name: "{name}" device_vendor: "NVIDIA Corporation" device_address_bits: 64 ecc_enabled: true
            cuda_compute_capability {{ major: {major} minor: {minor} {extension} }}
            core_count: {card.processors} fpus_per_core: {generation.units} clock_rate_ghz: {card.clock}
            device_memory_size: {card.memory} memory_bandwidth: {round(card.bandwidth)} l2_cache_size: {card.l2_cache}
            shared_memory_per_core: {generation.shared_memory} shared_memory_per_block: 49152
            shared_memory_per_block_optin: {generation.block_shared_memory}
            registers_per_core_limit: 65536 registers_per_block_limit: 65536
            threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {generation.threads}
            thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
            block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            pcie_bandwidth: {round(generation.pcie)} device_interconnect_info {{ active_links: {card.links} }}
            driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
            dnn_version: "9.10.0"
        }}
        platform_name: "CUDA"
        dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
        device_description_str: "{name}"
    """
