import pytest
import torch
import torch.nn.functional as F

from tests.reference.network import Network, only_output


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


def add_attention(network, q, k, v, causal=False):
    tensors = [network.input(value) for value in (q, k, v)]
    attention = network.net.add_attention(*tensors, network.trt.AttentionNormalizationOp.SOFTMAX, causal)
    attention.decomposable = True
    return attention


def qkv(heads=2, shared=2, queries=4, keys=4):
    sizes = ((1, heads, queries, 16), (1, shared, keys, 16), (1, shared, keys, 16))
    return [torch.randn(size).half() for size in sizes]


@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keys", [4, 7])
def test_attention_is_unscaled(network, shared, causal, keys):
    q, k, v = qkv(heads=4, shared=shared, keys=keys)
    expected = F.scaled_dot_product_attention(
        q.float(), k.float(), v.float(), is_causal=causal, scale=1.0, enable_gqa=True
    )
    result = only_output(network, add_attention(network, q, k, v, causal))
    torch.testing.assert_close(result, expected.half())


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_attention_mask(network, kind):
    q, k, v = qkv()
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril() if kind == "bool" else torch.randn(1, 1, 4, 4).half()
    attention = add_attention(network, q, k, v)
    attention.mask = network.input(mask)
    expected = F.scaled_dot_product_attention(
        q.float(), k.float(), v.float(), mask if kind == "bool" else mask.float(), scale=1.0
    )
    torch.testing.assert_close(only_output(network, attention), expected.half())


def test_attention_feeds_later_layers(network):
    q, k, v = qkv()
    attention = add_attention(network, q, k, v)
    layer = network.net.add_unary(attention.get_output(0), network.trt.UnaryOperation.NEG)
    expected = -F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=1.0)
    torch.testing.assert_close(only_output(network, layer), expected.half())


def test_lower_right_causal_mask(network):
    if not hasattr(network.net, "add_attention_v2"):
        pytest.skip("this TensorRT has only upper-left causal masks")
    q, k, v = qkv(queries=2, keys=5)
    tensors = [network.input(value) for value in (q, k, v)]
    attention = network.net.add_attention_v2(
        *tensors, network.trt.AttentionNormalizationOp.SOFTMAX, network.trt.CausalMaskKind.LOWER_RIGHT
    )
    attention.decomposable = True
    mask = torch.ones(2, 5, dtype=torch.bool).tril(3)
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, scale=1.0)
    torch.testing.assert_close(only_output(network, attention), expected.half())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [0, 4])
@pytest.mark.parametrize("by_position", [False, True])
def test_rotary_embedding_turns_pairs(network, interleaved, rotary, by_position):
    """A pair (a, b) is the complex number a + ib, turned by an angle."""
    x, size = torch.randn(1, 2, 3, 8), rotary or 8
    angles = torch.rand(6, size // 2)
    positions = torch.tensor([[5, 0, 2]])
    used = angles[positions]
    tables = [angles.cos(), angles.sin()] if by_position else [used.cos(), used.sin()]
    layer = network.net.add_rotary_embedding(
        network.input(x), *[network.constant(table) for table in tables], interleaved, rotary
    )
    if by_position:
        layer.set_input(3, network.input(positions))
    pairs = x[..., :size].unflatten(-1, (-1, 2) if interleaved else (2, -1))
    pairs = pairs if interleaved else pairs.mT
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.polar(torch.ones_like(used), used))
    expected = (turned if interleaved else turned.mT).flatten(-2)
    torch.testing.assert_close(only_output(network, layer), torch.cat([expected, x[..., size:]], -1))


def test_kv_cache_update(network):
    cache, update = torch.zeros(2, 1, 4, 8).half(), torch.ones(2, 1, 2, 8).half()
    starts = torch.tensor([0, 2], dtype=torch.int32)
    layer = network.net.add_kv_cache_update(
        network.input(cache), network.input(update), network.input(starts), network.trt.KVCacheMode.LINEAR
    )
    result = only_output(network, layer)
    assert result[:, 0, :, 0].tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
