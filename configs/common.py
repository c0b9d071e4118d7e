"""Every field of a run, with its default: `get_config()`.

One comment line each, shown by `--help`. A benchmark's file starts from here
and changes what it needs. Any field can be overridden on the command line:
`--config.train.num_steps=100`.

Fields of `data`, `model`, `train`, `counterfactual` and `seed` bind a workdir
to what was trained in it; the others only evaluate, fit, score and report
again.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The defaults."""
  config = ConfigDict()
  # Of initialisation, data order, dropout, augmentation and held-out parts.
  config.seed = 0
  # How a step runs on several devices: 'pmap' or 'shard_map'.
  config.parallel = 'pmap'
  # Training steps of one program; 0 = 1 on CPU and for images in files, else
  # 10.
  config.steps_per_dispatch = 0
  # Keep the training images on every device: 'always', 'never', or 'auto', on
  # accelerators where they take a quarter of the memory at most.
  config.data_on_device = 'auto'
  # Bit-equal training on GPU too, somewhat slower there.
  config.deterministic = False

  config.data = ConfigDict()
  # Data set: 'digits', 'mnist', 'cifar10', 'svhn', 'tinyimagenet' or 'folder'.
  config.data.name = 'digits'
  # Of 'folder': where a sub-folder of images for each class lies.
  config.data.train_dir = ''
  # Of 'folder': where its test part lies, sub-folders of the same names, with
  # data.test_share=0; '' = a share of train_dir.
  config.data.test_dir = ''
  # Of 'folder': how many classes there must be; 0 = as many as sub-folders.
  config.data.num_classes = 0
  # Of 'folder': side of the square that the middle of each image is brought to.
  config.data.image_size = 64
  # Of 'folder': make images grey.
  config.data.grey = False
  # Positions of the classes that are kept back and come as unknown.
  config.data.unknown_classes = (7, 8, 9)
  # Known classes of each class split, all others are not known; () = none, and
  # unknown_classes counts.
  config.data.splits = ()
  # Which of the splits, from 0.
  config.data.split = 0
  # Whether classes that are not known come as unknown; False = left out.
  config.data.others_unknown = True
  # Share of the known samples that is the test part; 0 = the published one.
  config.data.test_share = 0.25
  # Share of the other known samples held out for choices; never trained on.
  config.data.select_share = 0.1
  # Share of the rest held out for thresholds; never trained on.
  config.data.calibrate_share = 0.1
  # Of the test part and the unknowns, so that all training seeds share them.
  config.data.evaluation_seed = 0

  config.evaluation = ConfigDict()
  # 'set' or 'set:recipe' each: noise, mnist_noise:background (its default) or
  # :sum, omniglot:resize (its default), :nearest, :mnist_style or :dark; for
  # 32x32 colour: imagenet_crop, imagenet_resize, lsun_crop, lsun_resize,
  # cifar100.
  config.evaluation.unknown_sets = ('noise',)
  # Folders of images of none of the classes, an unknown set each.
  config.evaluation.unknown_dirs = ()
  # Samples of each unknown set at most; a shorter set is used whole.
  config.evaluation.max_unknown = 10_000
  # Classes of CIFAR-100 in the unknown set cifar100, for each of data.splits;
  # () = all 100.
  config.evaluation.cifar100_splits = ()

  config.model = ConfigDict()
  # Classifying half: 'digits_cnn', 'mnist_cnn', 'fast_cnn', 'vgg',
  # 'densenet100', 'wide_resnet40_4' or 'resnet50'.
  config.model.backbone = 'digits_cnn'
  # Channels of its first block; of 'densenet100' what each layer adds.
  config.model.width = 32
  # Dropout rate after each block; within them in the nets of 40 layers or more.
  config.model.dropout = 0.25
  # Dropout rate between fully connected layers, or before the only one.
  config.model.head_dropout = 0.5
  # 'bottleneck' (DHRNet), 'identity' (LadderNet) or 'none' (classifier alone).
  config.model.lateral = 'bottleneck'
  # Channels of each bottleneck.
  config.model.latent_width = 32
  # What is pooled as latent: 'z', or 'hr' for hr(z) as the authors' scripts do.
  config.model.latent = 'z'
  # How it is pooled over space: 'max' or 'mean'.
  config.model.pool = 'max'
  # End of the reconstruction: 'linear', or 'relu' as the authors' release.
  config.model.last = 'linear'
  # Side of the centre crop, resized, that is all a net sees of an image when it
  # is not in training; 0 = the whole image. For nets trained with train.crop.
  config.model.eval_crop = 0
  # Answer with the mean of an image and its mirror image where the net is not
  # in training, for twice the time. For nets trained with train.flip.
  config.model.eval_mirror = False
  # Degrees by which training also turns images, of (90, 180, 270), each class,
  # turned by each of them, a class of its own; images must be square. The
  # accuracy in the log is of all these; evaluation tells the K classes alone.
  config.model.rotation_classes = ()
  # Answer for an image and these turns of it where the net is not in training,
  # for so many times the time: mean logits, the codes side by side.
  config.model.eval_rotations = False
  # Answer with the mean of an image and of it moved by so many pixels, at most
  # 4, to each side where the net is not in training, for five times the time;
  # 0 = of the image alone.
  config.model.eval_shift = 0
  # What the net computes in: 'float32', or 'bfloat16' for accelerators, which
  # keeps parameters, losses, statistics and logits in float32.
  config.model.dtype = 'float32'
  # Nets, trained with seeds of their own, that answer together (an ensemble).
  config.model.members = 1

  config.train = ConfigDict()
  # Steps of the whole training; schedules stretch to it.
  config.train.num_steps = 1_000
  # Samples of a step, over all devices.
  config.train.batch_size = 128
  # Weight of the reconstruction error beside the cross-entropy.
  config.train.reconstruction_weight = 1.0
  # Show every class equally often, however many samples it has.
  config.train.balanced = False
  # Share of a label that is spread evenly over all classes.
  config.train.label_smoothing = 0.0
  # Beta parameter of the shares in which images and labels are mixed in pairs
  # (mixup); 0 = not mixed.
  config.train.mixup = 0.0
  # Gaussian noise on the images that the net sees in training and not on those
  # it is to rebuild (denoising), in deviations of the pixels; 0 = none.
  config.train.noise = 0.0
  # Side of a square of the mean colour somewhere on the images that the net
  # sees in training (cutout), which it is to rebuild whole; the accuracy in the
  # log is of what it sees; 0 = none.
  config.train.cutout = 0
  # Decay of the moving average of weights that is evaluated; 0 = none.
  config.train.average = 0.0
  # 'sgd' (Nesterov), 'adamw' or 'muon'.
  config.train.optimizer = 'sgd'
  # Highest learning rate of the schedule.
  config.train.learning_rate = 0.05
  # Of 'sgd' and 'muon'.
  config.train.momentum = 0.9
  # On weights, not on biases and norms; of 'muon' on convolutions alone.
  config.train.weight_decay = 5e-4
  # 'one_cycle', 'cosine', 'linear', 'halving' or 'constant'.
  config.train.schedule = 'one_cycle'
  # Share of the steps in which the learning rate rises.
  config.train.warmup_share = 0.3
  # How often 'halving' halves, at equal distances after the rise.
  config.train.halvings = 19
  # Largest norm of the gradient; 0 = unclipped.
  config.train.clip_norm = 5.0
  # Augmentation: pixels an image is moved at most; 0 = not at all.
  config.train.shift = 0
  # What comes in there: 'black', or 'reflect' for the image mirrored.
  config.train.shift_fill = 'black'
  # Augmentation: mirror half of the images.
  config.train.flip = False
  # Augmentation: degrees an image is turned at most; 0 = not at all.
  config.train.rotate = 0.0
  # Augmentation: sigma of 'PCA lighting', in 255ths, which the variances of the
  # principal colours scale; 0 = none.
  config.train.lighting = 0.0
  # Augmentation: largest side of the canvas of the mean colour that an image is
  # put on at random, in sides of the image; 1 = none.
  config.train.expand = 1.0
  # Augmentation: side of the random crop that is resized back; 0 = the whole.
  config.train.crop = 0
  # Steps between rows of the training log.
  config.train.log_every = 50
  # Steps between checkpoints; a killed run goes on from the newest.
  config.train.checkpoint_every = 500
  # Newest checkpoints kept.
  config.train.keep_checkpoints = 3
  # What is evaluated: the 'last' step, or the 'best' checkpoint on the select
  # part.
  config.train.keep = 'last'

  config.counterfactual = ConfigDict()
  # Images that a GAN makes of training images, trained on as unknown (Neal et
  # al. 2018), for model.lateral='none'; 0 = this system is off.
  config.counterfactual.count = 0
  # Steps of training encoder, generator and critic.
  config.counterfactual.gan_steps = 2_000
  # Samples of a step, over all devices, and of the search.
  config.counterfactual.batch_size = 64
  # Numbers of a code, which is a point on the unit sphere.
  config.counterfactual.latent_width = 64
  # Channels where images are largest, doubled wherever they are halved.
  config.counterfactual.width = 32
  # Of Adam, for all three nets.
  config.counterfactual.learning_rate = 5e-4
  # Critic updates before each of encoder and generator.
  config.counterfactual.critic_steps = 1
  # Weight of the gradient penalty in the critic's loss.
  config.counterfactual.gradient_penalty = 10.0
  # Weight of the mean absolute error beside the critic's judgement.
  config.counterfactual.reconstruction_weight = 100.0
  # Codes tried from each training image.
  config.counterfactual.search_steps = 10
  # Length of a step between them.
  config.counterfactual.search_rate = 0.1
  # Weight of the squared distance from the training image's code.
  config.counterfactual.distance_weight = 1.0

  config.weibull = ConfigDict()
  # What is measured: 'joint' (logits and codes, CROSR), 'evidence' (own logit,
  # code and reconstruction error, each in its own measure) or 'neighbour' (the
  # same, but for the two nearest training samples in place of the logit).
  config.weibull.vector = 'evidence'
  # What a coordinate is divided by: 'none', 'std' or 'within_class'.
  config.weibull.scaling = 'within_class'
  # Of 'evidence' and 'neighbour': a sample's answer counts where it is beyond
  # the usual less so many deviations; with 1, already a little before.
  config.weibull.margin = 0.0
  # Largest distances per class that are fitted: a number as '20', a share of
  # the class as '5%' (at least 20), or 'auto': the share with which argmax
  # rejects about scorer.reject_known of the select part.
  config.weibull.tail = 'auto'

  config.scorer = ConfigDict()
  # Classes that OpenMax revises; more than there are means all.
  config.scorer.alpha = 10
  # What decides: 'argmax', 'half', 'tpr95', 'calibrated' (a threshold that
  # rejects reject_known of the calibrate part) or 'auto': argmax, unless it
  # rejects less than half or more than twice of that.
  config.scorer.decision = 'auto'
  # Share of known samples that may be rejected.
  config.scorer.reject_known = 0.02

  config.report = ConfigDict()
  # Draw the pictures; without them a report takes a second.
  config.report.pictures = True
  # Keep features.npz: other tails and scorers then need neither net nor data.
  config.report.features = True
  # Samples on the t-SNE maps at most.
  config.report.map_samples = 1_000
  return config
