"""Networks of images, in small."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from zoo.model import Model, classes, normal, squared


def norm_layer(kind, channels):
    return {"batch": nn.BatchNorm2d, "group": lambda c: nn.GroupNorm(2, c), "none": lambda c: nn.Identity()}[kind](
        channels
    )


class BasicBlock(nn.Module):
    def __init__(self, inputs, planes, stride, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=norm == "none")
        self.bn1, self.relu = norm_layer(norm, planes), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=norm == "none")
        self.bn2, self.downsample = norm_layer(norm, planes), None
        if stride != 1 or inputs != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, planes, 1, stride, bias=False), norm_layer(norm, planes)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet18(nn.Module):
    """Four stages of two blocks, at 2 to 8 channels."""

    def __init__(self, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 7, stride=2, padding=3, bias=False)
        self.bn1, self.relu = norm_layer(norm, 2), nn.ReLU(inplace=True)
        self.maxpool, planes = nn.MaxPool2d(3, stride=2, padding=1), [2, 2, 4, 4, 8]
        for i in range(4):
            blocks = [BasicBlock(planes[i], planes[i + 1], 1 if i == 0 else 2, norm)]
            blocks += [BasicBlock(planes[i + 1], planes[i + 1], 1, norm)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(8, 4)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.uniform_(-0.1, 0.1)
                m.running_var.uniform_(0.5, 1.5)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Net3C3D(nn.Module):
    """Three convolutions and three dense layers, with the paddings of TensorFlow."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 4, 5), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 6, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2)
        self.dense1, self.dense2, self.dense3 = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.pool(F.pad(F.relu(self.conv1(x)), (0, 1, 0, 1)))
        x = self.pool(F.pad(F.relu(self.conv2(x)), (0, 1, 0, 1)))
        x = self.pool(F.pad(F.relu(self.conv3(x)), (0, 1, 0, 1)))
        x = F.relu(self.dense1(x.flatten(1)))
        return self.dense3(F.relu(self.dense2(x)))


class AllCNNC(nn.Module):
    """Convolutions alone; the mean over positions stands at the end, of one position here."""

    def __init__(self):
        super().__init__()
        layers = []
        for inputs, outputs, kernel, stride, padding in (
            (3, 4, 3, 1, 1),
            (4, 4, 3, 1, 1),
            (4, 4, 3, 2, 1),
            (4, 6, 3, 1, 1),
            (6, 6, 3, 1, 1),
            (6, 6, 3, 2, 1),
            (6, 6, 3, 1, 0),
            (6, 6, 1, 1, 0),
        ):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride, padding), nn.ReLU()]
        self.features = nn.Sequential(nn.Dropout(0.2), *layers)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return F.relu(self.last(self.features(x)) + 1).mean(dim=[2, 3])


class DenseBlock(nn.Module):
    """Every layer sees the channels of all before it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(3 + 2 * i), nn.ReLU(inplace=True), nn.Conv2d(3 + 2 * i, 2, 3, padding=1))
            for i in range(3)
        )
        self.transition, self.classifier = nn.Conv2d(9, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = F.avg_pool2d(self.transition(torch.cat(features, 1)), 2)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class UNet(nn.Module):
    """One step down, one up by a transposed convolution and one by interpolation; a class for every pixel."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.middle, self.up2 = nn.Conv2d(4, 6, 3, padding=1), nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.conv2, self.conv1 = nn.Conv2d(8, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        one = F.leaky_relu(self.down1(x), 0.1)
        two = F.leaky_relu(self.down2(F.max_pool2d(one, 2)), 0.1)
        low = torch.relu(self.middle(F.max_pool2d(two, 2)))
        x = torch.relu(self.conv2(torch.cat([self.up2(low), two], dim=1)))
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.head(torch.relu(self.conv1(torch.cat([x, one], dim=1))))


class SqueezeExcitation(nn.Module):
    """MobileNet's and EfficientNet's block: depthwise convolution, gate by channel, residual."""

    def __init__(self):
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.fc1, self.fc2 = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.project, self.classifier = nn.Conv2d(6, 3, 1), nn.Linear(3, 4)

    def forward(self, x):
        h = F.hardswish(self.depthwise(F.relu6(self.expand(x))))
        gate = F.hardsigmoid(self.fc2(F.relu(self.fc1(h.mean((2, 3), keepdim=True)))))
        return self.classifier((x + self.project(gate * h)).mean([2, 3]))


class ConvNeXtBlock(nn.Module):
    """Channels last for the layer norm and the dense layers, with a scale of its own."""

    def __init__(self):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(3, 3, 7, padding=3, groups=3), nn.LayerNorm(3, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(3, 8), nn.Linear(8, 3)
        self.gamma, self.head = nn.Parameter(0.5 * torch.ones(3)), nn.Linear(3, 4)

    def forward(self, x):
        h = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        h = self.gamma * self.pwconv2(F.gelu(self.pwconv1(h)))
        return self.head((x + h.permute(0, 3, 1, 2)).mean([-2, -1]))


class Patches(nn.Module):
    """A vision transformer: patches by a convolution, a class token, positions, one pre-norm block."""

    def __init__(self):
        super().__init__()
        self.conv_proj, self.class_token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8) * 0.1)
        self.pos_embedding = nn.Parameter(torch.randn(1, 5, 8) * 0.1)
        self.ln_1, self.ln_2, self.ln = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.self_attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp, self.head = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)), nn.Linear(8, 4)

    def forward(self, x):
        n = x.shape[0]
        x = self.conv_proj(x).reshape(n, 8, -1).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1) + self.pos_embedding
        h = self.ln_1(x)
        h, _ = self.self_attention(h, h, h, need_weights=False)
        x = x + h
        x = x + self.mlp(self.ln_2(x))
        return self.head(self.ln(x)[:, 0])


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6)
        )
        self.decoder = nn.Linear(6, 64)
        self.out = nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x):
        z = self.encoder(x)
        return torch.sigmoid(self.out(F.relu(self.decoder(z)).view(-1, 4, 4, 4)))


class VAE(nn.Module):
    """With the noise of one pass; returns reconstruction, mean and log variance."""

    def __init__(self):
        super().__init__()
        self.encoder, self.mu, self.logvar = nn.Linear(12, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.decoder, self.out = nn.Linear(3, 8), nn.Linear(8, 12)

    def forward(self, x):
        h = F.relu(self.encoder(x.flatten(1)))
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.exp(0.5 * logvar) * normal(*mu.shape, seed=5)
        return self.out(torch.tanh(self.decoder(z))), mu, logvar


def evidence(outputs):
    y, mu, logvar = outputs
    reconstruction = F.binary_cross_entropy_with_logits(y, torch.linspace(0, 1, y.numel(), dtype=y.dtype).view_as(y))
    return reconstruction - 0.05 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())


class Siamese(nn.Module):
    """One encoder for two images."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 5))
        self.head = nn.Linear(5, 1)

    def forward(self, one, other):
        return self.head((self.encoder(one) - self.encoder(other)).abs())


class WeightNormed(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.conv, self.fc = wrap(nn.Conv2d(3, 4, 3)), wrap(nn.Linear(144, 6))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.fc(F.softplus(self.conv(x)).flatten(1))))


class SuperResolution(nn.Module):
    """ESPCN: channels become pixels."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 5, padding=2), nn.Conv2d(4, 12, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(2)

    def forward(self, x):
        return self.pixel_shuffle(self.conv2(torch.tanh(self.conv1(x))))


X = normal(3, 3, 8, 8)
MODELS = {
    "ResNet-18, batch norm (eval)": Model(lambda: ResNet18("batch"), normal(2, 3, 32, 32), classes, "fc"),
    "ResNet-18, group norm": Model(lambda: ResNet18("group"), normal(2, 3, 64, 64), classes, "fc"),
    "ResNet-18, no norm": Model(lambda: ResNet18("none"), normal(2, 3, 32, 32), classes, "fc"),
    "3C3D": Model(Net3C3D, normal(3, 3, 20, 20), classes, "dense3"),
    "All-CNN-C": Model(AllCNNC, normal(3, 3, 12, 12), classes, "last"),
    "DenseNet block": Model(DenseBlock, X, classes, "classifier"),
    "UNet": Model(UNet, X, classes, "head"),
    "MobileNet block, squeeze and excitation": Model(SqueezeExcitation, X, classes, "classifier"),
    "ConvNeXt block": Model(ConvNeXtBlock, X, classes, "head"),
    "ViT": Model(Patches, X, classes, "head"),
    "convolutional autoencoder": Model(Autoencoder, X, squared, "out"),
    "variational autoencoder": Model(VAE, normal(4, 3, 2, 2), evidence, "out"),
    "Siamese": Model(Siamese, (normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1)), squared, "head"),
    "weight_norm": Model(lambda: WeightNormed(parametrizations.weight_norm), X, classes, "head"),
    "spectral_norm": Model(lambda: WeightNormed(parametrizations.spectral_norm), X, classes, "head"),
    "super-resolution, pixel shuffle": Model(SuperResolution, X, squared, "conv2"),
}
