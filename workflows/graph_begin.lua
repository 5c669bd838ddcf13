-- Begin a graph, unless it has begun: after it was sent, or when its run is built again. Stands after graph.lua.
--   KEYS[1]  the graph     KEYS[2]  its set of steps that may start     KEYS[3]  the run
--   ARGV[1]  the prefix of results' keys
if redis.call('HGET', KEYS[1], 'begun') ~= start_of(KEYS[3]) then
    begin(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
end
