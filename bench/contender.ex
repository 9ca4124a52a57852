defmodule Bench.Contender do
  @moduledoc """
  Who receives, and how much of it per second.

    * `:ours` - the native receive loop;
    * `:ours_ssl` - the same with `tls: :otp`, so that it reads through `:ssl`;
    * `:elixir` - `Bench.ElixirLoop`, the best loop in Elixir that we know how to write;
    * `:splitting` - `Bench.SplittingLoop`, the straightforward one;
    * `:raw` - `recv` that discards what it reads.
  """

  alias Barytherium.{Connection, Frame, Native, Network}
  alias Barytherium.Network.{Receiver, Sender, WriteCounters}
  alias Bench.Processor

  # What `gen_tcp` reads at once, for those that read through it. Of 64, 128 and 256 KiB this is the
  # best for the Elixir loops.
  @socket_options [buffer: 128 * 1024]

  # Words of heap that the Elixir loops start with, so that they are collected less often.
  @heap 400_000

  @doc """
  What `contender` receives from `port` in `time` milliseconds, after a while of warming up.

  `%{rate: units per second, cpu: microseconds of this VM a unit, allocations: of this VM's
  allocators, a unit, listener: microseconds that its listener took a unit}`; a unit is a frame, or a byte for `:raw`.

  With `websocket: true` the feed sends frames of a WebSocket. With the option `inflate: true` bodies are inflated: by our receive loop, or by the listener.

  The option `:acknowledge` is `:each`, to acknowledge each frame in a `Sender.write/2` of its own
  and to count acknowledgements that are written, or `:last`, to acknowledge the last frame of each
  list. Other options are those of `Connection.connect/3`.
  """
  def measure(contender, port, time, opts \\ []) do
    {counter, stop} = start(contender, port, opts)
    Process.sleep(div(time, 4))
    cpu = Processor.time()
    allocations = allocations()
    before = {count(counter), System.monotonic_time(:microsecond)}
    listener = listened(counter)
    Process.sleep(time)
    listener = listened(counter) - listener
    after_ = {count(counter), System.monotonic_time(:microsecond)}
    cpu = Processor.time() - cpu
    allocations = allocations() - allocations
    stop.()
    units = elem(after_, 0) - elem(before, 0)
    seconds = (elem(after_, 1) - elem(before, 1)) / 1_000_000

    %{
      rate: units / seconds,
      cpu: cpu * 1_000_000 / max(units, 1),
      allocations: allocations / max(units, 1),
      listener: listener / 1000 / max(units, 1)
    }
  end

  # Nanoseconds of the listener.
  defp listened(counter),
    do: if(:counters.info(counter).size > 1, do: :counters.get(counter, 2), else: 0)

  # The native side's own are not among them; the decoder has none for a frame.
  defp allocations do
    for name <- :erlang.system_info(:alloc_util_allocators),
        {:instance, _number, info} <- :erlang.system_info({:allocator, name}),
        {^name, giga, count} <- info[:calls],
        reduce: 0,
        do: (sum -> sum + giga * 1_000_000_000 + count)
  end

  @doc """
  What each of `count` connections receives per second, all at once, microseconds of the processor for a unit, and how
  long others in the VM wait meanwhile: `{rates, cpu, %{ping: microseconds, file: microseconds}}`, of a round trip
  between two processes and of a `File.read/1`, 99th percentiles.
  """
  def measure_many(contender, port, count, time) do
    started = for _connection <- 1..count, do: start(contender, port)
    Process.sleep(div(time, 4))
    before = for {counter, _stop} <- started, do: count(counter)
    cpu = Processor.time()
    waits = waits(System.monotonic_time(:millisecond) + time, [], [])
    after_ = for {counter, _stop} <- started, do: count(counter)
    cpu = Processor.time() - cpu
    for {_counter, stop} <- started, do: stop.()
    units = for {from, to} <- Enum.zip(before, after_), do: to - from
    {for(count <- units, do: count * 1000 / time), cpu * 1_000_000 / Enum.sum(units), waits}
  end

  # A process that is new each time is not already running on some scheduler.
  defp waits(until, pings, files) do
    {ping, :pong} = :timer.tc(fn -> Task.await(Task.async(fn -> :pong end), :infinity) end)
    {file, {:ok, _bytes}} = :timer.tc(fn -> File.read("mix.exs") end)
    Process.sleep(1)

    if System.monotonic_time(:millisecond) < until,
      do: waits(until, [ping | pings], [file | files]),
      else: %{ping: p99([ping | pings]), file: p99([file | files])}
  end

  defp p99(times), do: times |> Enum.sort() |> Bench.Report.quantile(0.99)

  @doc "Bytes that this VM has grown by, `time` milliseconds after a listener stopped listening."
  def backlog(port, time, opts) do
    before = :erlang.memory(:total)
    {:ok, socket} = Connection.connect({127, 0, 0, 1}, port)
    listener = spawn_link(fn -> Process.sleep(:infinity) end)
    network = spawn_link(&answer_network/0)
    {:ok, _loop} = Receiver.start_link(socket, listener, network, self(), opts)
    Process.sleep(time)
    grown = :erlang.memory(:total) - before
    for pid <- [listener, network], do: Process.unlink(pid) && Process.exit(pid, :kill)
    # The loop ends with the listener, and the memory goes a little later.
    Connection.close(socket)
    Process.sleep(div(time, 2))
    grown
  end

  @doc "The microseconds of `count` round trips to an echoing feed, sorted."
  def round_trips(contender, port, count) do
    {:ok, socket} = Connection.connect({127, 0, 0, 1}, port)
    loop = start_loop(contender, socket)
    await_frame()
    # The loop gets going.
    for _trip <- 1..100, do: round_trip(socket)
    trips = for _trip <- 1..count, do: round_trip(socket)
    Process.unlink(loop)
    Process.exit(loop, :kill)
    Connection.close(socket)
    Enum.sort(trips)
  end

  @doc "The microseconds that each of `count` frames took, sorted, from a feed that sends at its own pace."
  def paced(contender, port, count) do
    {:ok, socket} = Connection.connect({127, 0, 0, 1}, port)
    loop = start_loop(contender, socket)
    await_frame()
    # The loop gets going.
    latencies(100, [])
    latencies = latencies(count, [])
    Process.unlink(loop)
    Process.exit(loop, :kill)
    Connection.close(socket)
    Enum.sort(latencies)
  end

  defp latencies(left, latencies) when left <= 0, do: latencies

  defp latencies(left, latencies) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        now = System.os_time(:nanosecond)
        more = for %{headers: [{"sent", sent} | _]} <- frames, do: since(sent, now)
        latencies(left - length(more), more ++ latencies)
    end
  end

  defp since(sent, now), do: (now - String.to_integer(sent)) / 1000

  @doc "Single writes a second: `times` over, `count` of them, the last of which is waited for."
  def writes(port, count, times) do
    {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, port)
    sender = receive do: ({_cast, {:barytherium, :connect, {:ok, sender}}} -> sender)
    Sender.write(sender, [%Frame{command: :connect}])
    await_frame()
    ack = [%Frame{command: :ack, headers: [{"id", "T_1@@session@@1234567"}]}]
    started = System.monotonic_time(:microsecond)

    for _time <- 1..times do
      for _n <- 2..count, do: Sender.write(sender, ack)
      :ok = Sender.write(sender, ack, :sync)
    end

    passed = System.monotonic_time(:microsecond) - started
    GenServer.stop(network)
    count * times * 1_000_000 / passed
  end

  defp round_trip(socket) do
    started = System.monotonic_time(:nanosecond)
    Connection.send(socket, "\n")
    await_frame()
    (System.monotonic_time(:nanosecond) - started) / 1000
  end

  defp await_frame do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {_frames, _sender}}} -> :ok
    end
  end

  @doc "Starts `contender` on a new connection: what counts, and how to end it."
  def start(contender, port, opts \\ []) do
    {acknowledge, opts} = Keyword.pop(opts, :acknowledge)
    {inflate, opts} = Keyword.pop(opts, :inflate, false)
    {websocket, opts} = Keyword.pop(opts, :websocket, false)
    # The first of a sender's counters is that of frames written.
    counter = if acknowledge, do: WriteCounters.new(), else: :counters.new(2, [])
    parent = self()

    {pid, monitor} =
      spawn_monitor(fn ->
        opts = options(contender, opts[:secure]) ++ opts
        {:ok, socket} = Connection.connect({127, 0, 0, 1}, port, opts)
        socket = if websocket, do: websocket(socket), else: socket
        send(parent, {self(), :connected})

        if inflate,
          do: run_inflated(contender, socket, counter),
          else: run(contender, socket, counter, acknowledge)
      end)

    receive do
      {^pid, :connected} -> :ok
      {:DOWN, ^monitor, _type, _pid, reason} -> exit(reason)
    end

    stop = fn ->
      Process.exit(pid, :kill)

      receive do
        {:DOWN, ^monitor, _type, _pid, _reason} -> :ok
      end
    end

    {counter, stop}
  end

  # The feed does no opening handshake.
  defp websocket(socket),
    do: %Connection.WebSocket{socket: socket, websocket: Native.websocket_open("")}

  def count(counter), do: :counters.get(counter, 1)

  defp options(:ours, _secure), do: []
  defp options(:ours_ssl, _secure), do: [tls: :otp]
  defp options(_other, true), do: [tls: :otp] ++ @socket_options
  defp options(_other, nil), do: @socket_options

  defp run(:raw, socket, counter, nil) do
    {:ok, bytes} = Connection.recv(socket, 0, :infinity)
    :counters.add(counter, 1, byte_size(bytes))
    run(:raw, socket, counter, nil)
  end

  # The process that is killed is the listener: the loop ends with it.
  defp run(contender, socket, counter, nil) do
    start_loop(contender, socket)
    listen(counter)
  end

  # All contenders acknowledge through our sender: it is the receiving that is compared.
  defp run(contender, socket, counter, acknowledge) do
    counters = if acknowledge == :each, do: counter, else: WriteCounters.new()
    {:ok, sender} = Sender.start_link(self(), socket, counters, :infinity, "the feed")
    start_loop(contender, socket)
    acknowledge(acknowledge, sender, counter)
  end

  defp run_inflated(:ours, socket, counter) do
    start_loop(:ours, socket, inflate: true)
    listen_timed(counter, & &1)
  end

  defp run_inflated(elixir, socket, counter) do
    start_loop(elixir, socket)
    listen_timed(counter, &%{&1 | body: :zlib.gunzip(&1.body)})
  end

  # Looks at each body, and no further.
  defp listen_timed(counter, inflate) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        started = System.monotonic_time(:nanosecond)

        for %{command: :message} = frame <- frames do
          %{body: "<?xml" <> _rest} = inflate.(frame)
          :counters.add(counter, 1, 1)
        end

        :counters.add(counter, 2, System.monotonic_time(:nanosecond) - started)
        listen_timed(counter, inflate)
    end
  end

  defp start_loop(contender, socket, opts \\ [])
  defp start_loop(:elixir, socket, []), do: start_elixir(socket, &Bench.ElixirLoop.loop/2)
  defp start_loop(:splitting, socket, []), do: start_elixir(socket, &Bench.SplittingLoop.loop/2)

  defp start_loop(ours, socket, opts) when ours in [:ours, :ours_ssl] do
    network = spawn_link(&answer_network/0)
    {:ok, loop} = Receiver.start_link(socket, self(), network, self(), opts)
    give(socket, loop)
    loop
  end

  defp start_elixir(socket, run) do
    listener = self()
    loop = :erlang.spawn_opt(fn -> run.(socket, listener) end, [:link, min_heap_size: @heap])
    give(socket, loop)
    loop
  end

  defp give(socket, pid) do
    # Port sockets stay with who opened them, so that it can write as well.
    if Connection.tls(socket) == :otp, do: :ssl.controlling_process(socket, pid)
  end

  defp acknowledge(which, sender, counter) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} when which == :each ->
        Enum.each(frames, &write_ack(&1, sender))
        acknowledge(which, sender, counter)

      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        frames |> List.last() |> write_ack(sender)
        :counters.add(counter, 1, length(frames))
        acknowledge(which, sender, counter)
    end
  end

  defp write_ack(%{command: :message, headers: headers}, sender) do
    {"ack", id} = List.keyfind(headers, "ack", 0)
    Sender.write(sender, [%Frame{command: :ack, headers: [{"id", id}]}])
  end

  defp write_ack(_connected, _sender), do: :ok

  defp listen(counter) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        :counters.add(counter, 1, length(frames))
        listen(counter)
    end
  end

  defp answer_network do
    receive do
      {:"$gen_call", from, {:connected_frame, _frame}} ->
        GenServer.reply(from, {0, 0})
        answer_network()
    end
  end
end
