// A static Go program: its runtime has no malloc that could be watched, and return probes would break its stacks.
// It must live on, whatever a tool tries. "go" reports how many rounds were right and wrong.
package main

import (
	"bufio"
	"fmt"
	"os"
	"sync/atomic"
)

type node struct {
	next *node
	data [16]uint64
}

var good, bad atomic.Int64

//go:noinline
func build(n int, seed uint64) *node {
	var head *node
	for i := 0; i < n; i++ {
		item := &node{next: head}
		for j := range item.data {
			item.data[j] = seed + uint64(i*j)
		}
		head = item
	}
	return head
}

//go:noinline
func deep(levels int, seed uint64) uint64 {
	var room [64]uint64
	room[levels%64] = seed
	if levels > 0 {
		return deep(levels-1, seed) + room[levels%64] - seed // grows and moves the stack
	}
	return room[0]
}

func check(head *node, n int, seed uint64) bool {
	for i := n - 1; i >= 0; i-- {
		for j := range head.data {
			if head.data[j] != seed+uint64(i*j) {
				return false
			}
		}
		head = head.next
	}
	return head == nil
}

func work(seed uint64) {
	for {
		seed = seed*6364136223846793005 + 1442695040888963407
		n := int(seed>>33) % 200
		if check(build(n, seed), n, seed) && deep(n, seed) == seed {
			good.Add(1)
		} else {
			bad.Add(1)
		}
	}
}

func main() {
	fmt.Printf("{\"event\":\"ready\",\"pid\":%d}\n", os.Getpid())
	for i := 0; i < 4; i++ {
		go work(uint64(i) + 1)
	}
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() && input.Text() == "go" {
		fmt.Printf("{\"event\":\"load\",\"pid\":%d,\"ok\":%d,\"bad\":%d}\n", os.Getpid(), good.Load(), bad.Load())
		fmt.Printf("{\"event\":\"done\",\"pid\":%d}\n", os.Getpid())
	}
	if bad.Load() != 0 {
		os.Exit(1)
	}
}
