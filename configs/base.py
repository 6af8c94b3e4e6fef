"""The paper's scale: AUV fine-tuned under frozen Qwen3-4B on LibriSpeech, 25k steps (method.md 7).

Every option of every run stands here with its default and its meaning; the other configs change
what they must. Override on the command line with --config.section.field=value.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # of parameters, noise and data order
    c.total_steps = 25_000  # optimiser updates; all starts below are fractions of this
    c.init = (
        "auv.pt"  # codec to start from: "mini", run, converted folder, .safetensors, .pt; "" fresh
    )

    c.codec = codec()
    c.discriminators = discriminators()
    c.lm = lm()

    c.bridge = ConfigDict()  # how codec latents become LM inputs (method.md 3)
    c.bridge.logits = "projection"  # the paper's W z + b; "native" uses the quantiser's own space
    c.bridge.mode = "gumbel"  # "gumbel", "ste" (no noise), "detach" (no LM gradient to the codec)
    # native: logits = -(squared cosine distance) / scale. Neighbouring codes are about 0.02 apart;
    # at 0.1 the Gumbel noise would hand the LM a wrong code at nearly every frame.
    c.bridge.scale = 0.01
    c.bridge.chunk = 512  # codes per chunk of the fused sampler: memory, never the result
    c.bridge.jitter = 24  # samples the LM branch's audio is shifted by, at random
    c.bridge.label_noise = 0.015  # share of FTP labels replaced by random codes
    # FTP's gradient through the codes to be predicted, beside that through the codes that were
    # read: 0 as published; 1 draws the codec to the better predicted of two equally good codes
    # (language.pull_on_targets).
    c.bridge.target_gradient = 0.0
    c.bridge.frequency_weight = 1.0  # of that: what a code's own frequency weighs against it

    c.schedule = schedule()
    c.weights = weights()
    c.optim = optim(c)

    c.training = ConfigDict()
    c.training.train_norm = False  # BatchNorm keeps its pretrained statistics
    c.training.use_domains = False  # limit the code search to each clip's domain partition
    c.training.revive_every = 0  # steps between revivals of dead codes; 0 for pretrained codecs
    c.training.revive_below = 0.02  # a code is dead below this share of its fair share 1 / V

    c.data = data()

    c.mesh = ConfigDict()  # devices = data * fsdp * tensor; -1 takes what is left
    c.mesh.data = 1  # copies of the frozen LM; clips are split over data * fsdp
    c.mesh.fsdp = -1  # devices that share one copy, each layer gathered when its turn comes
    c.mesh.tensor = 1  # devices that share each matrix product; keep within a host

    c.log = log()
    return c


def codec() -> ConfigDict:
    c = ConfigDict()
    c.name = "auv"  # architecture
    c.sample_rate = 16_000  # Hz
    c.hop = 320  # samples per frame: 50 frames a second
    c.width = 512  # D
    c.encoder_layers = 8
    c.decoder_layers = 12
    c.head_dim = 64  # width of an attention head; divides width
    c.ffn_multiple = 4  # feed-forward width over D
    c.conv_kernel = 31  # taps of the depthwise convolution
    c.codebook_size = 20_480  # V
    c.code_dim = 8  # width of the search space
    c.levels = 1  # residual codebooks
    c.conv_norm = "batch"  # as published; "rms" keeps no statistics
    c.partitions = "nested"  # codes open to each domain in training; None: all to all
    c.dtype = "bfloat16"  # of matmuls and convolutions; transforms and search stay float32
    c.remat = False  # in the backward pass recompute even products with weights
    return c


def discriminators() -> ConfigDict:
    c = ConfigDict()
    c.enabled = True
    c.loss = "hinge"  # or "lsgan"
    c.r1_every = 16  # steps between gradient penalties, weighted up by as much
    c.periods = (2, 3, 5, 7, 11)  # of the multi-period discriminator
    c.period_channels = (64, 128, 256, 512, 1024)
    c.scales = 3  # of the multi-scale discriminator, each at half the rate of the one before
    c.scale_channels = (64, 128, 256, 512, 1024)
    c.dtype = "bfloat16"
    return c


def lm() -> ConfigDict:
    c = ConfigDict()
    c.path = "Qwen3-4B-Instruct-2507"  # Hugging Face folder or .gguf file; "" trains without an LM
    c.begin_token = 151_643  # <|endoftext|>: Qwen3 has no BOS; any fixed frozen embedding serves
    c.horizons = 5  # K
    c.embedding_start = "text_distribution"  # start of the audio rows: or "mean", "normal"
    c.bank = 512  # contrastive negatives per aligned layer
    c.logit_scale = 5.0  # of the contrastive loss
    c.smoothing = 0.1  # label smoothing of the contrastive loss
    c.dtype = "bfloat16"  # of the frozen weights
    c.remat = True  # in the backward pass recompute even products with weights
    # The architecture, so that a run can be compiled without weights (compile_check). Training
    # takes what `path` holds and warns of a difference.
    c.config = ConfigDict()
    c.config.vocab_size = 151_936
    c.config.width = 2560
    c.config.layers = 36
    c.config.heads = 32
    c.config.kv_heads = 8
    c.config.head_dim = 128
    c.config.ffn_width = 9728
    c.config.qk_norm = True
    c.config.tied = True
    c.config.rope_theta = 5e6
    return c


def schedule() -> ConfigDict:
    c = ConfigDict()  # fractions of total_steps
    c.codec_start = 0.4  # 10k: the codec is frozen before
    c.discriminator_start = 0.0
    c.adversarial_start = 0.4  # with the codec
    c.lm_start = 0.0  # bridge, audio embeddings and heads learn from the first step
    c.ftp_start = 0.4  # the LM losses' gradient enters the codec ...
    c.ftp_ramp = 0.08  # ... and is whole at 12k
    c.sa_start = 0.48  # 12k
    c.sa_ramp = 0.08  # full weight at 14k
    c.temperature_start = 1.0
    c.temperature_end = 0.3
    c.temperature_shape = "cosine"  # or "linear"
    c.temperature_steps = 0.8  # 20k
    return c


def weights() -> ConfigDict:
    c = ConfigDict()  # 0 removes a term
    c.mel = 1.5  # falls by a cosine to ...
    c.mel_final = 0.75  # ... at the last step
    c.multi_scale_mel = 0.5
    c.multi_resolution_stft = 0.5
    c.complex_stft = 0.8
    c.vq = 1.0
    c.adversarial = 1.0
    c.feature_matching = 1.5  # falls linearly to ...
    c.feature_matching_final = 1.0  # ... at the last step
    c.r1 = 2.0  # gamma of the gradient penalty
    c.bridge = 1.0
    c.ftp = 0.2
    c.sa_cosine = 0.1
    c.sa_contrastive = 0.05
    return c


def optim(c: ConfigDict) -> ConfigDict:
    """One group per part; `pattern` is matched against whole parameter paths, each exactly once."""
    o = ConfigDict()
    o.accumulate = 1  # micro-batches per update
    o.max_bad_steps = 20  # non-finite steps in a row before training stops
    codec_start = c.schedule.get_ref("codec_start")
    # "adamw", "sgd" (the paper's for the codec) or "muon" (learns faster from scratch)
    sgd = dict(optimizer="sgd", learning_rate=5e-6, b1=0.9, weight_decay=1e-4)
    adam = dict(optimizer="adamw", learning_rate=1e-4, b1=0.9, b2=0.99, weight_decay=0.0)
    common = dict(clip=15.0, warmup=0.08, final=0.0)  # 2k steps, then a cosine to zero
    groups = {
        "encoder": dict(pattern=r"codec/(encoder|quantizer)/.*", start=codec_start, **sgd),
        "decoder": dict(pattern=r"codec/decoder/.*", start=codec_start, **sgd),
        "bridge": dict(pattern=r"bridge/.*", start=0.0, **adam),
        "audio_embedding": dict(pattern=r"audio_embedding", start=0.0, **adam),
        "ftp_heads": dict(pattern=r"ftp_heads", start=0.0, **adam),
        "discriminators": dict(pattern=r".*", start=0.0, **{**adam, "b1": 0.8}),
    }
    o.groups = ConfigDict({name: {**common, **fields} for name, fields in groups.items()})
    return o


def data() -> ConfigDict:
    c = ConfigDict()
    # What to learn from: one source or a mixture of (source, weight, domain). A source is
    # tfds:NAME[:SPLIT], librispeech:DIR, folder:DIR, arrayrecord:GLOB or embedded.
    c.sources = ("tfds:librispeech:train_clean360",)
    c.eval_sources = ()  # held-out audio; empty takes `eval_fraction` out of `sources`
    c.eval_fraction = 0.02  # of the records, by the hash of what `split_by` names ...
    c.eval_max = 256  # ... but not more than this
    c.split_by = "name"  # or "speaker": no held-out speaker is heard in training
    c.batch_size = 10  # clips per update, over all devices and processes
    c.eval_batch_size = 8
    c.clip_seconds = 4.0  # longer recordings are cropped at random, shorter ones padded
    c.max_text = 128  # tokens; longer transcripts are left out
    c.text_policy = "aligned"  # text of whole clips and of words inside a crop; "transcript"
    #                            pairs the whole text with any crop, as published
    c.alignments = ""  # folder of LibriSpeech word times (*.alignment.txt): crops keep their words
    c.min_seconds = 0.3  # shorter clips are skipped
    c.silence_peak = 1e-3  # quieter clips are skipped
    c.workers = 0  # loader processes; 0 uses threads
    c.threads = 2
    c.buffer = 4  # batches ready on the host
    c.prefetch = 2  # batches ready on the devices
    return c


def log() -> ConfigDict:
    c = ConfigDict()
    c.every = 50  # steps between rows of metrics.jsonl
    c.eval_every = 1000  # steps between evaluations on the fixed held-out set
    c.eval_clips = 32  # held-out clips
    c.listen = 4  # of them kept as audio and pictures
    c.checkpoint_every = 500
    c.checkpoint_dir = ""  # where to; "" the run folder. On pods gs://BUCKET/FOLDER
    c.keep = 2  # newest checkpoints kept, beside the best one
    c.profile = (0, 0)  # steps [first, last) to trace into the run folder; equal: none
    c.tensorboard = True
    c.wandb = False  # Weights & Biases, if installed
    return c
