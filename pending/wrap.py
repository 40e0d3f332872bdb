"""fill.py ROOT [BASE]: realign and wrap code lines in notebooks (and tests) that are too long; trees stay equal"""
import ast, io, json, re, sys, tokenize
from pathlib import Path
W=120
OPEN,CLOSE="([{",")]}"
HEAD={"if","for","while","with","def","class","else","elif","try","except","finally","async"}
def toks(src):
    return [t for t in tokenize.generate_tokens(io.StringIO(src).readline)]
def logical(src):
    "lists of tokens, one list a logical line (comments inside included; own-line comments outside left alone)"
    out,cur=[],[]
    for t in toks(src):
        if t.type in (tokenize.INDENT,tokenize.DEDENT,tokenize.ENDMARKER): continue
        if t.type==tokenize.NL and not cur: continue
        if t.type==tokenize.COMMENT and not cur: continue
        if t.type==tokenize.NEWLINE:
            if cur: out.append(cur)
            cur=[]; continue
        cur.append(t)
    if cur: out.append(cur)
    return out
def splitstr(s,room):
    m=re.match(r'(?i)^([rbfu]*)("""|\'\'\'|"|\')',s)
    p,q=m[1],m[2]
    if len(q)==3: return None
    body=s[len(p)+1:-1]; depth=0; best=None; i=0
    while i<len(body):
        c=body[i]
        if c=="\\" and "r" not in p.lower(): i+=2; continue
        if "f" in p.lower():
            if body[i:i+2] in("{{","}}") and depth==0: i+=2; continue
            if c=="{": depth+=1
            elif c=="}": depth-=1
        if c==" " and depth==0 and len(p)+1+i+2<=room: best=i+1
        i+=1
    if not best: return None
    a,b=body[:best],body[best:]
    pa=p if "f" not in p.lower() or "{" in a else p
    return f"{p}{q}{a}{q}",f"{p}{q}{b}{q}"
def pieces(ts):
    "(text before, token text, type)"
    out=[];prev=None
    for t in ts:
        if t.type==tokenize.NL: continue
        if prev is None: gap=""
        elif t.start[0]==prev.end[0]: gap=t.line[prev.end[1]:t.start[1]] if prev.end[0]==t.start[0] and prev.type!=tokenize.STRING or "\n" not in prev.string else " "
        else: gap="" if prev.string in OPEN or t.string in CLOSE else " "
        if prev is not None and t.start[0]==prev.end[0]:
            gap=LINES[t.start[0]-1][prev.end[1]:t.start[1]]
        out.append((gap,t.string,t.type)); prev=t
    return out
def fill(ps,indent,first=None,hang=False):
    "greedy fill of a bracketed logical line"
    lines=[];cur=" "*indent if first is None else first;stack=[];i=0
    # recursive approach: emit tokens; when the line gets too long, go back to the best break
    items=list(ps); n=len(items)
    pos=0; line_start_stack=[]
    while pos<n:
        # emit as many tokens as fit
        text=cur; st=list(stack); cand=[]; k=pos; fresh=True; target=False
        while k<n:
            gap,s,ty=items[k]
            add=("" if fresh else gap)+s if fresh and not lines and k==0 else (("" if fresh else gap)+s)
            # a break before k?
            if s=="in": target=False
            if not fresh and st and not target:
                pg=items[k-1][1]
                if s not in CLOSE and (pg=="," or s in("and","or","if","else","for","in","+","-","*","/","|","&","==","!=","<","<=",">",">=","not","@") and gap==" " and pg not in OPEN and pg not in("=",) and not (s in("-","not","*") and pg in(",","=","(","and","or","in","if","else")) and not (s=="in" and pg=="not") and not (pg=="not" and s=="in") or ty==tokenize.STRING and items[k-1][2]==tokenize.STRING):
                    if s=="in" : 
                        pass
                    else:
                        cand.append((k,len(st),len(text.rstrip()),list(st)))
                elif hang and pg in OPEN and s not in CLOSE and items[k-1][2]==tokenize.OP and k-1>pos:
                    cand.append((k,len(st)-.5,len(text.rstrip()),[*st[:-1],-1]))
            if s=="for": target=True
            if len(text+add)>W and cand: break
            if len(text+add)>W and not cand:
                if ty==tokenize.STRING and st:
                    sp=splitstr(s,W-len(text+("" if fresh else gap)))
                    if sp:
                        items[k:k+1]=[(gap,sp[0],ty),(" ",sp[1],ty)]; n=len(items); continue
            text+=add; fresh=False
            if s in OPEN and len(s)==1: st.append(len(text))
            elif s in CLOSE and len(s)==1 and st: st.pop()
            k+=1
        if k>=n:
            lines.append(text.rstrip()); break
        # choose: smallest depth, late enough
        if hang:
            lineind=len(cur)-len(cur.lstrip()) if cur.strip() else len(cur)
            d=min(c[1] for c in cand); c0=[c for c in cand if c[1]==d][-1]
            # what follows a comma at this depth fits? else break behind the bracket
            pass
        good=[c for c in cand if c[2]>=(60 if not hang else 1)] or cand
        d=min(c[1] for c in good); c=[c for c in good if c[1]==d][-1]
        # prefer after-comma? keep last
        kb=c[0]; text=cur; st=list(stack); fresh=True
        for j in range(pos,kb):
            gap,s,ty=items[j]
            text+=("" if fresh else gap)+s; fresh=False
            if s in OPEN and len(s)==1: st.append(len(text))
            elif s in CLOSE and len(s)==1 and st: st.pop()
        lines.append(text.rstrip()); stack=st
        if c[3] and c[3][-1]==-1 and stack: stack[-1]=(len(lines[-1])-len(lines[-1].lstrip()))+4
        col=stack[-1] if stack else indent+4
        cur=" "*col; pos=kb
    return lines
def merge_strings(ps):
    out=[]
    for p in ps:
        if out and p[2]==tokenize.STRING and out[-1][2]==tokenize.STRING:
            a,b=out[-1][1],p[1]
            ma,mb=(re.match(r'(?i)^([rbfu]*)("""|\'\'\'|"|\')',x) for x in (a,b))
            if ma[2]==mb[2] and len(ma[2])==1 and set(ma[1]+mb[1])<=set("f"):
                A,B=a[len(ma[0]):-1],b[len(mb[0]):-1]
                if ma[1]==mb[1] or ("{" not in (A if not ma[1] else B) and "}" not in (A if not ma[1] else B)):
                    out[-1]=(out[-1][0],f"{max(ma[1],mb[1])}{ma[2]}{A}{B}{ma[2]}",tokenize.STRING); continue
        out.append(p)
    return out
def header_colon(ps):
    depth=0;lam=0
    for i,(g,s,ty) in enumerate(ps):
        if ty==tokenize.OP and s in OPEN: depth+=1
        elif ty==tokenize.OP and s in CLOSE: depth-=1
        elif s=="lambda" and depth==0: lam+=1
        elif s==":" and depth==0:
            if lam: lam-=1
            else: return i
def wrap(ps,indent,base):
    ps=merge_strings(ps)
    flat=" "*indent+"".join(g+s for g,s,_ in ps)
    if len(flat)<=W: return [flat]
    if ps[0][1] in HEAD:
        c=header_colon(ps)
        if c is not None and c<len(ps)-1:
            head=wrap([*ps[:c+1]],indent,base); rest=ps[c+1:]
            parts=[[]];depth=0
            for p in rest:
                if p[2]==tokenize.OP and p[1] in OPEN: depth+=1
                if p[2]==tokenize.OP and p[1] in CLOSE: depth-=1
                if p[1]==";" and depth==0: parts.append([]); continue
                parts[-1].append(p)
            out=head
            for q in parts:
                if q: out+=wrap([("",q[0][1],q[0][2]),*q[1:]],indent+4,base)
            return out
    elif ps[0][1]=="from" and "(" not in [p[1] for p in ps]:
        k=[p[1] for p in ps].index("import")+1
        qs=[*ps[:k],(" ","(",tokenize.OP),("",ps[k][1],ps[k][2]),*ps[k+1:],("",")",tokenize.OP)]
        return fill(qs,indent)
    else:
        depth=0
        for i,p in enumerate(ps):
            if p[2]==tokenize.OP and p[1] in OPEN: depth+=1
            if p[2]==tokenize.OP and p[1] in CLOSE: depth-=1
            if p[1]==";" and depth==0:
                return wrap(ps[:i],indent,base)+wrap([("",ps[i+1][1],ps[i+1][2]),*ps[i+2:]],indent,base)
    lines=fill(ps,indent)
    def cost(ls): return (max(map(len,ls))>W, max(len(l)-len(l.lstrip()) for l in ls)>56, len(ls), max(len(l)-len(l.lstrip()) for l in ls))
    if not cost(lines)[0] and not cost(lines)[1]: return lines
    # parenthesise what stands outside of brackets
    k=None
    if ps[0][1] in("return","assert","yield"): k=1
    else:
        depth=0
        for i,p in enumerate(ps):
            if p[1] in OPEN and p[2]==tokenize.OP: depth+=1
            if p[1] in CLOSE and p[2]==tokenize.OP: depth-=1
            if depth==0 and p[2]==tokenize.OP and p[1] in("=","+=","|=","-="): k=i+1
    if k and ps[0][1] not in HEAD:
        e=len(ps)
        if ps[0][1]=="assert":
            depth=0
            for i,p in enumerate(ps):
                if p[1] in OPEN and p[2]==tokenize.OP: depth+=1
                if p[1] in CLOSE and p[2]==tokenize.OP: depth-=1
                if p[1]=="," and depth==0: e=i; break
        qs=[*ps[:k],(" ","(",tokenize.OP),("",ps[k][1],ps[k][2]),*ps[k+1:e],("",")",tokenize.OP),*ps[e:]]
        l2=fill(qs,indent)
        if cost(l2)<cost(lines): lines=l2
        if cost(lines)[0]:
            l3=fill(qs,indent,hang=True)
            if cost(l3)<cost(lines): lines=l3
    if cost(lines)[0] or cost(lines)[1]:
        l3=fill(ps,indent,hang=True)
        if cost(l3)<cost(lines): lines=l3
    return lines
def realign(seg_new,seg_old):
    "shift continuation lines of a logical line so that they stand where they stood: at the innermost open bracket"
    out=[seg_new[0]]
    return out
def brackets(lines):
    "column of innermost open bracket at the start of each line (None if none)"
    src="\n".join(lines)+"\n"; cols=[None]*len(lines); stack=[]; last=0
    try:
        for t in tokenize.generate_tokens(io.StringIO(src).readline):
            r=t.start[0]-1
            if t.type not in (tokenize.NL,tokenize.NEWLINE,tokenize.ENDMARKER,tokenize.INDENT,tokenize.DEDENT):
                for q in range(last+1,r+1): cols[q]=stack[-1] if stack else None
                last=max(last,t.end[0]-1,r)
            if t.type==tokenize.OP and t.string in OPEN: stack.append(t.end[1])
            elif t.type==tokenize.OP and t.string in CLOSE and stack: stack.pop()
    except (tokenize.TokenError,IndentationError): return None
    return cols
def misaligned(lines):
    "whether a continuation line stands neither at its bracket nor hangs four columns in"
    cols=brackets(lines)
    if cols is None: return False
    base=len(lines[0])-len(lines[0].lstrip())
    for r in range(1,len(lines)):
        if not lines[r].strip() or cols[r] is None: continue
        ind=len(lines[r])-len(lines[r].lstrip())
        if lines[r].lstrip()[0] in CLOSE: continue
        if ind!=cols[r] and (ind-base)%4: return True
        if ind!=cols[r] and ind>cols[r]: return True
        if ind!=cols[r] and lines[r-1].rstrip()[-1:] not in OPEN and ind!=len(lines[r-1])-len(lines[r-1].lstrip()): return True
    return False
def do(src,old):
    "one cell"
    global LINES
    try: tree=ast.dump(ast.parse(src))
    except SyntaxError: return src
    lines=src.split("\n"); LINES=lines
    ol=old.split("\n") if old else None
    # realign, where the cell has as many lines as before
    if ol and len(ol)==len(lines) and ol!=lines:
        oc=brackets(ol)
        new=list(lines)
        for L in logical(src):
            a,b=L[0].start[0]-1,L[-1].end[0]-1
            if a==b: continue
            for r in range(a+1,b+1):
                nc=brackets(new[:r+1])
                cols_new=brackets(new)
                if oc is None or cols_new is None: break
                o,n=oc[r],cols_new[r]
                ind_o=len(ol[r])-len(ol[r].lstrip())
                if o is None or n is None or not new[r].strip(): continue
                cur=len(new[r])-len(new[r].lstrip())
                if ind_o in (o,o-1) and cur==ind_o and n+(ind_o-o)!=cur:
                    new[r]=" "*(n+ind_o-o)+new[r].lstrip()
        cand="\n".join(new)
        try:
            if ast.dump(ast.parse(cand))==tree: src=cand; lines=new; LINES=lines
        except SyntaxError: pass
    changed=True; guard=0
    out=list(lines)
    for L in reversed(logical(src)):
        a,b=L[0].start[0]-1,L[-1].end[0]-1
        deep=max([len(l)-len(l.lstrip()) for l in lines[a+1:b+1]]+[0])>60
        if max(len(l) for l in lines[a:b+1])<=W and not deep and not misaligned(lines[a:b+1]) and not any(re.search(r"\bfor [\w, ()*]*,$",l) for l in lines[a:b]): continue
        if any(t.type==tokenize.STRING and "\n" in t.string for t in L): continue
        indent=L[0].start[1]
        comments=[t for t in L if t.type==tokenize.COMMENT]
        if comments:
            if a==b and len(comments)==1 and L[-1].type==tokenize.COMMENT:
                ps=pieces(L[:-1]); c=comments[0].string
                new=([" "*indent+c] if len(" "*indent+c)<=W else [" "*indent+c])+wrap(ps,indent,None)
                if L[0].string in HEAD and False: pass
            else:
                new=[]
                for r in range(a,b+1):
                    l=lines[r]
                    cs=[t for t in comments if t.start[0]-1==r]
                    if len(l)>W and cs:
                        code=l[:cs[0].start[1]].rstrip(); room=W-len(code)-2
                        if len(cs[0].string)<=room: new.append(code+"  "+cs[0].string)
                        else:
                            ind=len(l)-len(l.lstrip()); 
                            if r==a: new.append(l)
                            else: new+=[" "*ind+cs[0].string,code]
                    else: new.append(l)
        else: new=wrap(pieces(L),indent,None)
        trial=out[:a]+new+out[b+1:]
        try: ok=ast.dump(ast.parse("\n".join(trial)))==tree
        except SyntaxError: ok=False
        if ok and max(map(len,new))<=max(W,max(len(l) for l in lines[a:b+1])) and not (deep and max(len(l)-len(l.lstrip()) for l in new)>=max(len(l)-len(l.lstrip()) for l in lines[a+1:b+1])): out=trial
    return "\n".join(out)
if __name__=="__main__":
    root=Path(sys.argv[1]); base=Path(sys.argv[2]) if len(sys.argv)>2 else None
    n=left=0
    for p in [*sorted(root.glob("nbs/**/*.ipynb")),*sorted(root.glob("tests/**/*.py"))]:
        q=base/p.relative_to(root) if base else None
        if p.suffix==".ipynb":
            nb=json.loads(p.read_text()); ob={c["id"]:"".join(c["source"]) for c in json.loads(q.read_text())["cells"]} if q and q.exists() else {}
            ch=False
            for c in nb["cells"]:
                if c["cell_type"]!="code": continue
                s="".join(c["source"]); o=ob.get(c["id"])
                if False and o==s and max(map(len,s.split("\n")))<=W and not re.search(r"\bfor [\w, ()*]*,$",s,re.M): continue
                t=do(s,o)
                left+=sum(len(l)>W for l in t.split("\n"))
                if t!=s: c["source"]=t.splitlines(keepends=True); ch=True; n+=1
            if ch: p.write_text(json.dumps(nb,indent=1,ensure_ascii=False)+"\n")
        else:
            s=p.read_text(); o=q.read_text() if q and q.exists() else None
            t=do(s,o)
            left+=sum(len(l)>W for l in t.split("\n"))
            if t!=s: p.write_text(t); n+=1
    print(n,"cells changed;",left,"long lines left")
