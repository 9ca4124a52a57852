# Run by script/scale. Measures what idle connections cost that heart-beats keep alive.
Code.require_file("feed.ex", __DIR__)

defmodule Scale do
  alias Barytherium.{Connection, Native}
  alias Barytherium.Network.Receiver

  def run(count, transport) do
    {:ok, _apps} = Application.ensure_all_started(:barytherium)
    Logger.configure(level: :error)
    {_feed, port} = feed(transport)
    network = spawn_link(&answer/0)
    listener = spawn_link(&listen/0)

    # With TCP the sockets are open before the first measurement: their cost is not that of the receive
    # loop. With TLS the sessions are part of what is measured.
    opened = measure([listener, network])
    sockets = for _n <- 1..count, do: connect(port, transport)
    before = if transport == :tcp, do: measure([listener, network]), else: opened
    loops = for socket <- sockets, do: start(socket, listener, network)
    await(fn -> connected(listener) == count end)
    # Long enough for each to be read several times. Without heart-beats each would time out.
    Process.sleep(5_000)
    after_ = measure([listener, network])

    alive = Enum.count(loops, &Process.alive?/1)
    waiting = Enum.count(loops, &(Process.info(&1, :status) == {:status, :waiting}))
    IO.puts("connections          #{count}, alive #{alive}, waiting in `receive` #{waiting}")
    IO.puts("native side alive    #{Native.live_connections()}")
    IO.puts("resident memory each #{per(before.resident, after_.resident, count)} bytes")
    IO.puts("of that, processes   #{per(before.processes, after_.processes, count)} bytes")
    {time, {:ok, _bytes}} = :timer.tc(fn -> File.read("mix.exs") end)
    IO.puts("File.read/1          #{time} us")
    true = alive == count and (transport == :ssl or waiting > count * 0.99)
  end

  defp feed(:tcp), do: Bench.Feed.start(:beat, "", 1_000)
  defp feed(_tls), do: Bench.Feed.start_tls("\n", 1_000)

  defp connect(port, transport) do
    {:ok, socket} = Connection.connect({127, 0, 0, 1}, port, options(transport))
    socket
  end

  defp options(:tcp), do: []
  defp options(:tls), do: [secure: true, verify: :verify_none]
  defp options(:ssl), do: [tls: :otp] ++ options(:tls)

  defp start(socket, listener, network) do
    {:ok, loop} = Receiver.start_link(socket, listener, network, self())
    loop
  end

  defp answer do
    receive do
      {:"$gen_call", from, {:connected_frame, _frame}} -> GenServer.reply(from, {0, 1_000})
    end

    answer()
  end

  defp listen(count \\ 0) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} -> listen(count + length(frames))
      {:count, from} -> send(from, {:count, count}) && listen(count)
    end
  end

  defp connected(listener) do
    send(listener, {:count, self()})

    receive do
      {:count, count} -> count
    end
  end

  defp await(condition) do
    unless condition.() do
      Process.sleep(50)
      await(condition)
    end
  end

  # Without the garbage of this process and of the two that all connections share.
  defp measure(others) do
    Enum.each([self() | others], &:erlang.garbage_collect/1)
    [_all, kib] = Regex.run(~r/VmRSS:\s+(\d+) kB/, File.read!("/proc/self/status"))
    %{resident: String.to_integer(kib) * 1024, processes: :erlang.memory(:processes)}
  end

  defp per(before, after_, count), do: div(after_ - before, count)
end

[count, transport] = System.argv()
Scale.run(String.to_integer(count), String.to_existing_atom(transport))
