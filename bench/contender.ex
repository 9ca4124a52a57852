defmodule Bench.Contender do
  @moduledoc "Who receives, and how much of it a second."

  alias Barytherium.{Connection, Frame, Network}
  alias Barytherium.Network.{Receiver, Sender}

  # What `gen_tcp` reads at once, for those that read through it: as much as the native loop does.
  @socket_options [buffer: 256 * 1024]

  @doc """
  What `contender` receives from `port` in `time` milliseconds, after a while of warming up.

  `%{rate: units a second, cpu: microseconds of this VM a unit, allocations: of this VM's
  allocators, a unit}`; a unit is a frame, or an octet for `:raw`.
  """
  def measure(contender, port, time, opts \\ []) do
    {counter, stop} = start(contender, port, opts)
    Process.sleep(div(time, 4))
    {cpu, _since} = :erlang.statistics(:runtime)
    allocations = allocations()
    before = {count(counter), System.monotonic_time(:microsecond)}
    Process.sleep(time)
    after_ = {count(counter), System.monotonic_time(:microsecond)}
    {cpu_after, _since} = :erlang.statistics(:runtime)
    allocations = allocations() - allocations
    stop.()
    units = elem(after_, 0) - elem(before, 0)
    seconds = (elem(after_, 1) - elem(before, 1)) / 1_000_000

    %{
      rate: units / seconds,
      cpu: (cpu_after - cpu) * 1000 / max(units, 1),
      allocations: allocations / max(units, 1)
    }
  end

  # The native side's own are not among them; the decoder has none for a frame.
  defp allocations do
    for name <- :erlang.system_info(:alloc_util_allocators),
        {:instance, _number, info} <- :erlang.system_info({:allocator, name}),
        {^name, giga, count} <- info[:calls],
        reduce: 0,
        do: (sum -> sum + giga * 1_000_000_000 + count)
  end

  @doc "What each of `count` connections receives a second, all at once."
  def measure_many(contender, port, count, time) do
    started = for _connection <- 1..count, do: start(contender, port)
    Process.sleep(div(time, 4))
    before = for {counter, _stop} <- started, do: count(counter)
    Process.sleep(time)
    after_ = for {counter, _stop} <- started, do: count(counter)
    for {_counter, stop} <- started, do: stop.()
    for {from, to} <- Enum.zip(before, after_), do: (to - from) * 1000 / time
  end

  @doc "Octets that this VM has grown by, `time` milliseconds after a listener stopped listening."
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
    counter = :counters.new(1, [])
    parent = self()

    {pid, monitor} =
      spawn_monitor(fn ->
        {:ok, socket} = Connection.connect({127, 0, 0, 1}, port, opts ++ options(contender))
        send(parent, {self(), :connected})
        run(contender, socket, counter)
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

  def count(counter), do: :counters.get(counter, 1)

  defp options(:ours), do: []
  defp options(_other), do: @socket_options

  defp run(:raw, socket, counter) do
    {:ok, bytes} = Connection.recv(socket, 0, :infinity)
    :counters.add(counter, 1, byte_size(bytes))
    run(:raw, socket, counter)
  end

  # The process that is killed is the listener: the loop ends with it.
  defp run(contender, socket, counter) do
    start_loop(contender, socket)
    listen(counter)
  end

  defp start_loop(:elixir, socket), do: start_elixir(socket, &Bench.ElixirLoop.loop/2)
  defp start_loop(:splitting, socket), do: start_elixir(socket, &Bench.SplittingLoop.loop/2)

  defp start_loop(:ours, socket) do
    network = spawn_link(&answer_network/0)
    {:ok, loop} = Receiver.start_link(socket, self(), network, self())
    give(socket, loop)
    loop
  end

  defp start_elixir(socket, run) do
    listener = self()
    loop = spawn_link(fn -> run.(socket, listener) end)
    give(socket, loop)
    loop
  end

  defp give(socket, pid) do
    # Port sockets stay with who opened them, so that it can write as well.
    if Connection.tls?(socket), do: :ssl.controlling_process(socket, pid)
  end

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
