package cli

// heapFloor is the size in bytes of a part of the heap that is never touched, and so never takes real memory. The
// garbage collector runs when the heap has doubled: under load, 5 MB would have doubled ten times a second. With the
// floor it runs a quarter as often, and a small request takes 5 % less CPU time.
const heapFloor = 8 << 20
