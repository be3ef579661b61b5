import math
import torch
def first(d,*names,default=None):
    for n in names:
        v=d.get(n) if hasattr(d,'get') else getattr(d,n,None)
        if v is not None: return v
    return default
def channels(config,part):
    if config.get("base_dim"):
        base=config["base_dim"] if part=="encoder" else (config.get("decoder_base_dim") or config["base_dim"])
        return [base*m for m in config["dim_mult"]]
    if config.get("ch_mult"): return [config["channels"]*m for m in config["ch_mult"]]
    names=("encoder_block_out_channels","down_block_out_channels","block_out_channels") if part=="encoder" else ("decoder_block_out_channels","decode_block_out_channels","up_block_out_channels","block_out_channels")
    return first(config,*names)
def units(vae,part,a,k):
    config=dict(vae.config); ch=channels(config,part)
    if not ch: return None
    x=next(t for t in a if isinstance(t,torch.Tensor))
    n=len(ch)
    child=getattr(vae,part)
    patch=config.get("patch_size") or 1
    if not isinstance(patch,int): patch=1
    R=config.get("scale_factor_spatial") or config.get("spatial_compression_ratio") or getattr(vae,"spatial_compression_ratio",None) or 2**(n-1)*1
    d=round(math.log2(R//patch)); 
    inner=getattr(child,"patch_size",1) if not hasattr(child,"patch_embed") else patch
    temporal=config.get("temporal_compression_ratio") or config.get("scale_factor_temporal") or getattr(vae,"temporal_compression_ratio",None) or (math.prod(config["temporal_expansions"]) if "temporal_expansions" in config else None) or (2**sum(config["temperal_downsample"]) if "temperal_downsample" in config else 1)
    h,w=x.shape[-2:]
    f=x.shape[2] if x.dim()==5 else 1
    if part=="decoder":
        h*=2**d; w*=2**d
        if x.dim()==5:
            cached=any(isinstance(v,torch.Tensor) or v=="Rep" for v in (k.get("feat_cache") or [])) or k.get("conv_cache")
            f= 1 if f==1 and not cached and "temporal_expansions" not in config else f*temporal
        widest=max(max(ch[i],ch[min(i+1,n-1)])*4.0**-min(i,d) for i in range(n))
    else:
        h/=inner; w/=inner
        widest=max(ch[i]*4.0**-min(i,d) for i in range(n))
    e=x.element_size()
    return widest*h*w*f*x.shape[0]*e, (ch,d,temporal,f)
def estimate(vae,part,a,k):
    return units(vae,part,a,k)
