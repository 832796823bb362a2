package render

import (
	"bytes"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"

	"golang.org/x/sync/errgroup"

	"github.com/lictor-ha/lictor/bouncer/pooler/pgbouncer"
)

// Of a thousand shards one changes, and running the template's body for the others would
// take longer than PgBouncer's RELOAD. So what stands between {{range shards}} and its
// {{end}} is kept for each shard until that changes, where it depends on nothing else.

// bodies are the loops over all shards in a template whose text is kept.
type bodies struct {
	source  string
	version pgbouncer.Version
	// rest is the template with a call of keptCall in the place of each loop; empty: none
	// can be kept.
	rest string
	list []*body
	// framed: rest depends on nothing that a frame does not. frame is nil until it was made.
	framed bool
	frame  *frame
}

// keptCall is the function that stands for a loop.
const keptCall = "kept_text"

// body is one loop.
type body struct {
	template *template.Template
	// shards are those of the last run, made the texts of each.
	shards []*Shard
	made   [][]byte
}

// findBodies takes a template apart. One that cannot be is run as a whole, which also tells
// what is wrong with it.
func findBodies(source string, version pgbouncer.Version) *bodies {
	b := &bodies{source: source, version: version}
	trees := map[string]*parse.Tree{}
	tree := parse.New("template")
	tree.Mode = parse.SkipFuncCheck
	if _, err := tree.Parse(source, "", "", trees); err != nil || len(trees) != 1 || tree.Root == nil {
		return b // one that defines templates of its own, too
	}
	functions := shardFunctions(onlyShard, version)
	for i, node := range tree.Root.Nodes {
		loop, ok := node.(*parse.RangeNode)
		if !ok || !overShards(loop) || !onlyOf(loop.List, functions) {
			continue
		}
		text := loop.String()
		_, text, _ = strings.Cut(text, "}}")
		header := "{{range .}}"
		if len(loop.Pipe.Decl) == 1 {
			header = "{{range " + loop.Pipe.Decl[0].String() + " := .}}"
		}
		one, err := template.New("shard").Option("missingkey=zero").Funcs(functions).Parse(header + text)
		if err != nil { // a variable from outside, for one
			continue
		}
		call, err := parse.Parse("call", fmt.Sprintf("{{%s %d}}", keptCall, len(b.list)), "", "", map[string]any{keptCall: true})
		if err != nil {
			return &bodies{source: source, version: version}
		}
		tree.Root.Nodes[i] = call["call"].Root.Nodes[0]
		b.list = append(b.list, &body{template: one})
	}
	if len(b.list) > 0 {
		b.rest = tree.Root.String()
		b.framed = onlyOf(tree.Root, frameFunctions(version))
	}
	return b
}

// frameFunctions are those that depend on no more than a frame does.
func frameFunctions(version pgbouncer.Version) map[string]any {
	functions := textFunctions(version)
	for _, name := range []string{keptCall, "settings", "peers", "user_options", "fallback"} {
		functions[name] = nil
	}
	return functions
}

// overShards reports whether a loop is {{range shards}} or {{range $s := shards}}, without
// an {{else}}.
func overShards(loop *parse.RangeNode) bool {
	if loop.ElseList != nil || len(loop.Pipe.Decl) > 1 || loop.Pipe.IsAssign || len(loop.Pipe.Cmds) != 1 {
		return false
	}
	command := loop.Pipe.Cmds[0]
	if len(command.Args) != 1 {
		return false
	}
	name, ok := command.Args[0].(*parse.IdentifierNode)
	return ok && name.Ident == "shards"
}

// onlyOf reports whether a part of a template depends on nothing but the shard: it calls
// these functions and such of text/template that make text of their arguments.
func onlyOf(node parse.Node, functions map[string]any) bool {
	all := func(nodes []parse.Node) bool {
		return !slices.ContainsFunc(nodes, func(n parse.Node) bool { return !onlyOf(n, functions) })
	}
	branch := func(b *parse.BranchNode) bool {
		return onlyOf(b.Pipe, functions) && onlyOf(b.List, functions) && (b.ElseList == nil || onlyOf(b.ElseList, functions))
	}
	switch n := node.(type) {
	case *parse.ListNode:
		return all(n.Nodes)
	case *parse.ActionNode:
		return onlyOf(n.Pipe, functions)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			if !all(c.Args) {
				return false
			}
		}
		return true
	case *parse.IfNode:
		return branch(&n.BranchNode)
	case *parse.RangeNode:
		return branch(&n.BranchNode)
	case *parse.WithNode:
		return branch(&n.BranchNode)
	case *parse.ChainNode:
		return onlyOf(n.Node, functions)
	case *parse.VariableNode:
		return n.Ident[0] != "$"
	case *parse.IdentifierNode:
		_, ours := functions[n.Ident]
		return ours || slices.Contains([]string{"and", "or", "not", "eq", "ne", "lt", "le", "gt", "ge", "len", "index", "slice", "print", "printf", "println"}, n.Ident)
	case *parse.TextNode, *parse.DotNode, *parse.FieldNode, *parse.NilNode, *parse.BoolNode, *parse.NumberNode, *parse.StringNode:
		return true
	}
	return false // break and continue among them, which mean the loop
}

// atOnce is how many shards' texts are made one after the other. When all have changed, as
// after the loss of a zone, every processor makes some.
const atOnce = 64

// texts are the loop's for all shards, in a list that is kept: whoever has them stand elsewhere, too,
// may put those into it. What is not among them any more is forgotten.
func (b *body) texts(shards []*TemplateShard) ([][]byte, error) {
	texts := make([][]byte, len(shards))
	var fresh []int
	for i, s := range shards {
		if i < len(b.shards) && b.shards[i] == s.of {
			texts[i] = b.made[i]
			continue
		}
		fresh = append(fresh, i)
	}
	if len(shards) != len(b.shards) && len(b.shards) > 0 { // one that has come or gone has moved others
		made := make(map[*Shard][]byte, len(b.shards))
		for i, s := range b.shards {
			made[s] = b.made[i]
		}
		fresh = slices.DeleteFunc(fresh, func(i int) (have bool) {
			texts[i], have = made[shards[i].of]
			return have
		})
	}
	var making errgroup.Group
	making.SetLimit(runtime.GOMAXPROCS(0))
	for some := range slices.Chunk(fresh, atOnce) {
		making.Go(func() error {
			var one bytes.Buffer
			for _, i := range some {
				one.Reset()
				if err := b.template.Execute(&one, []*TemplateShard{shards[i]}); err != nil {
					return err
				}
				texts[i] = bytes.Clone(one.Bytes())
			}
			return nil
		})
	}
	if err := making.Wait(); err != nil {
		return nil, err
	}
	b.shards, b.made = make([]*Shard, len(shards)), texts
	for i, s := range shards {
		b.shards[i] = s.of
	}
	return texts, nil
}

// frame is the text around the loops, where it depends on nothing but the configuration, the
// version of PgBouncer and the database *.
type frame struct {
	// fallback is the line of the database *.
	fallback string
	// parts are what stands before each loop and after the last, loops which they are.
	parts []string
	loops []int
}

// mark stands for a loop in the text of which a frame is made; no file of PgBouncer has it.
const mark = "\x00"

func markOf(loop int) string { return mark + strconv.Itoa(loop) + mark }

// newFrame takes a text with marks apart; nil: it is none.
func newFrame(text, fallback string) *frame {
	f := &frame{fallback: fallback}
	for i, part := range strings.Split(text, mark) {
		if i%2 == 0 {
			f.parts = append(f.parts, part)
			continue
		}
		loop, err := strconv.Atoi(part)
		if err != nil {
			return nil
		}
		f.loops = append(f.loops, loop)
	}
	if len(f.parts) != len(f.loops)+1 {
		return nil
	}
	return f
}

// fill is the whole text, in the memory that it takes and no more.
func (f *frame) fill(list []*body, shards []*TemplateShard) ([]byte, error) {
	size, all := 0, make([][][]byte, len(f.loops))
	for i, loop := range f.loops {
		texts, err := list[loop].texts(shards)
		if err != nil {
			return nil, err
		}
		for _, text := range texts {
			size += len(text)
		}
		all[i] = texts
	}
	for _, part := range f.parts {
		size += len(part)
	}
	whole := make([]byte, 0, size)
	for i, part := range f.parts {
		whole = append(whole, part...)
		if i < len(all) {
			for n, text := range all[i] {
				from := len(whole)
				whole = append(whole, text...)
				all[i][n] = whole[from:len(whole):len(whole)] // what is kept is not there twice
			}
		}
	}
	return whole, nil
}
