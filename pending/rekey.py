"""rekey.py OLD NEW: carry the committed runs and sections of cpu over to renamed code. Keys of OLD prove what is current."""
import gzip, json, os, re, subprocess, sys, tempfile
from pathlib import Path
OLD,NEW=Path(sys.argv[1]).resolve(),Path(sys.argv[2]).resolve()
PROFILE="cpu"
PY=sys.executable
def ask(tree,code):
    env=dict(os.environ,PYTHONPATH=str(tree),MEDSEG_RUNS=os.path.join(tempfile.gettempdir(), f"rekey-{tree.name}"))
    r=subprocess.run([PY,"-c",code,str(NEW)],cwd=tree,env=env,capture_output=True,text=True)
    if r.returncode: print(r.stderr[-3000:]); sys.exit(1)
    return json.loads(r.stdout.splitlines()[-1])
KEYS='''
import json,sys
from pathlib import Path
from medseg_nb.training import training as T
from medseg_nb.data import manifest as M
from medseg_nb.kit.keys import closure
stops=getattr(T,"KEY_STOPS",None) or T.APART
out={}
root=Path.cwd()
for p in sorted((root/"reports").glob("*/runs/*/config.json")):
    c=T.Config(**json.loads(p.read_text())); cl=closure(T.starting_points(c),stop=stops)
    out[p.parent.name]=[T.run_key(c),T.scoring_key(c),sorted(cl.code)]
data={p.parent.name:M.data_key(p.parent.name) for p in sorted(root.glob("data_manifests/*/dataset.yaml"))}
print(json.dumps([out,data]))
'''
old,old_data=ask(OLD,KEYS)
assert all(k==v[0] for k,v in old.items()),"old keys differ"
# the committed runs of NEW are still under their old keys
new,new_data=ask(NEW,KEYS)
assert set(old)==set(new)
names={}  # former name: present name, where definitions were renamed
bad=set()
for k in old:
    a={names.get(n,n) for n in old[k][2]}; b=set(new[k][2])
    if a!=b: bad.add((tuple(sorted(a-b)),tuple(sorted(b-a))))
print(len(old),"runs; closures that differ in names:",len(bad)); [print(x) for x in list(bad)[:5]]
status=ask(OLD,'''
import json
from medseg_nb.kit import execution as e
known=e.sections()
print(json.dumps({n: e.changes(n,"cpu") for n,s in known.items() if "cpu" in s.profiles and "cpu" not in s.withdrawn}))
''')
print("old state:",{k:v for k,v in status.items() if v} or "all current",len(status))
if "--write" not in sys.argv: sys.exit()
run_map={k:v[0] for k,v in new.items()}
score_map={v[1]:new[k][1] for k,v in old.items()}
data_map={old_data[d]:new_data[d] for d in old_data if old_data[d]!=new_data[d]}
print("data that changed:",[d for d in old_data if old_data[d]!=new_data[d]])
allm={**run_map,**score_map,**data_map}
pat=re.compile(r"\b("+"|".join(allm)+r")\b")
def swap(s): return pat.sub(lambda m:allm[m[1]],s)
base=NEW/"reports"/PROFILE; n=0
for p in sorted(base.rglob("*")):
    if not p.is_file() or p.name in("paper.html","paper.pdf"): continue
    raw=p.read_bytes()
    if p.name.endswith(".csv.gz"):
        t=gzip.decompress(raw).decode(); u=swap(t)
        if u!=t: p.write_bytes(gzip.compress(u.encode(),9,mtime=0)); n+=1
    elif p.suffix in(".json",".csv",".svg",".md",".ipynb",".txt"):
        t=raw.decode(); u=swap(t)
        if u!=t: p.write_text(u); n+=1
print(n,"files rewritten")
for k,v in run_map.items():
    if (base/"runs"/k).exists(): (base/"runs"/k).rename(base/"runs"/v)
code='''
import json,os
from pathlib import Path
from medseg_nb.kit import execution as e
from medseg_nb.kit.core import sha256, to_json, folder, write, digest
out={}
for n,s in e.sections().items():
    if "cpu" not in s.profiles or "cpu" in s.withdrawn: continue
    place=folder("reports")/"cpu"/n; f=place/"provenance.json"
    rec=json.loads(f.read_text())
    new=e.provenance_record(n,"cpu")
    outputs={name:sha256(place/name) for name in rec["outputs"]}
    same={k for k in new["parts"] if new["parts"][k]==rec["parts"].get(k)}
    out[n]=sorted(set(new["parts"])-same)
    lineage=e.lineage(n,"cpu",None,place) if hasattr(e,"lineage") else new["data"]
    merged=rec|new|dict(outputs=outputs,machine=rec["machine"],data=lineage,seed=rec["seed"])
    write(f,to_json(merged))
    out[n].append(e.list_changes(n,"cpu"))
print(json.dumps(out))
'''
for n,v in ask(NEW,code).items(): print(n,v)
