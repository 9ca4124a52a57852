# Run by script/soak. Runs connections of every kind for a long time, and then checks that nothing is
# left of them.
#
# Workers open connections to scripted peers, one after the other. The kind of each connection and its
# transport are random. Each is checked by itself: what arrived, in which order, and how it ended.
defmodule Soak do
  import Bitwise

  alias Barytherium.{Connection, Frame, Native, Network, Peer}
  alias Barytherium.Network.Sender

  @workers 12
  # Milliseconds to wait for anything, on a machine that is busy with all the other connections.
  @patience 60_000
  @connected "CONNECTED\nversion:1.2\nheart-beat:100,100\n\n\0"

  @kinds [
    :feed,
    :slow_listener,
    :large_bodies,
    :bytes,
    :garbage,
    :reset,
    :silence,
    :killed_network,
    :killed_callback,
    :killed_receiver,
    :refused
  ]

  # The VM may have grown by `growth` MiB, because allocators keep some memory.
  def run(minutes, growth) do
    {:ok, _apps} = Application.ensure_all_started(:barytherium)
    # Each refusal and parse error would be logged.
    Logger.configure(level: :none)
    for kind <- @kinds, transport <- Peer.transports(), do: connection({kind, transport})
    settle(nil)
    before = counts()
    IO.puts("before  #{inspect(before)}")

    deadline = System.monotonic_time(:second) + minutes * 60
    workers = for _n <- 1..@workers, do: Task.async(fn -> work(deadline, %{}) end)

    done =
      workers
      |> Task.await_many(:infinity)
      |> Enum.reduce(&Map.merge(&1, &2, fn _k, a, b -> a + b end))

    settle(before)
    now = counts()
    IO.puts("after   #{inspect(now)}")

    for {{kind, transport}, count} <- Enum.sort(done),
        do: IO.puts("#{String.pad_trailing("#{kind}, #{transport}", 24)} #{count}")

    IO.puts("connections      #{done |> Map.values() |> Enum.sum()}, all correct")

    left = for {what, count} <- now, what != :memory, count > before[what], do: {what, count}
    unless left == [], do: raise("left behind: #{inspect(left)}")

    if now.memory > before.memory + growth * 1024 * 1024,
      do: raise("grown to #{now.memory} bytes")
  end

  defp counts do
    Enum.each(Process.list(), &:erlang.garbage_collect/1)

    %{
      descriptors: "/proc/self/fd" |> File.ls!() |> length(),
      connections: Native.live_connections(),
      processes: length(Process.list()),
      ports: length(Port.list()),
      memory: resident()
    }
  end

  # The resident memory, because `:erlang.memory/0` does not include what the native side allocates.
  defp resident do
    [_all, kib] = Regex.run(~r/VmRSS:\s+(\d+) kB/, File.read!("/proc/self/status"))
    String.to_integer(kib) * 1024
  end

  # Waits until what has ended is gone.
  defp settle(before, attempts \\ 100) do
    left =
      before && Enum.any?(Map.delete(counts(), :memory), fn {what, n} -> n > before[what] end)

    if attempts > 0 and left != false do
      Process.sleep(100)
      settle(before, attempts - 1)
    end
  end

  defp work(deadline, done) do
    if System.monotonic_time(:second) < deadline do
      kind = {Enum.random(@kinds), Enum.random(Peer.transports())}
      connection(kind)
      work(deadline, Map.update(done, kind, 1, &(&1 + 1)))
    else
      done
    end
  end

  # Runs in a process of its own. Its mailbox is for one connection only, and what it started ends
  # with it.
  defp connection({kind, transport}) do
    {pid, monitor} =
      spawn_monitor(fn ->
        Process.flag(:trap_exit, true)
        Process.put(:transport, transport)
        scenario(kind)
      end)

    receive do
      {:DOWN, ^monitor, :process, ^pid, :normal} ->
        :ok

      {:DOWN, ^monitor, :process, ^pid, reason} ->
        raise("#{kind} over #{transport}: #{inspect(reason)}")
    after
      2 * @patience -> raise("#{kind} over #{transport} hangs: #{inspect(Process.info(pid))}")
    end
  end

  defp scenario(:feed) do
    {_network, peer} = connect()
    feed(peer, 2_000, 200)
  end

  defp scenario(:slow_listener) do
    {_network, peer} = connect(high_water_mark: 4)
    feed(peer, 4_000, 1_000, fn -> if :rand.uniform(4) == 1, do: Process.sleep(20) end)
  end

  defp scenario(:large_bodies) do
    {_network, peer} = connect()
    feed(peer, 8, 3_000_000)
  end

  defp scenario(:bytes) do
    {_network, peer} = connect()
    spawn_link(fn -> Peer.send_bytes(peer, IO.iodata_to_binary(frames(1..5, 20))) end)
    receive_frames(1, 5)
    Peer.close(peer)
    disconnected(:closed)
  end

  defp scenario(:garbage) do
    {_network, peer} = connect()
    Peer.send(peer, [frames(1..10, 100), "MESSAGE\nno colon\n\n\0"])
    receive_frames(1, 10)
    disconnected(:parse_error)
    Peer.assert_closed(peer)
  end

  defp scenario(:reset) do
    {_network, peer} = connect()
    Peer.send(peer, frames(1..10, 100))
    receive_frames(1, 10)
    Peer.send(peer, "MESSAGE\ncontent-length:1000000\n\nhalf a body")
    Peer.reset(peer)
    disconnected(:closed)
  end

  defp scenario(:silence) do
    {_network, peer} = connect([heartbeat_receive_allowance: 100], "100,100")
    disconnected(:timeout)
    Peer.assert_closed(peer)
  end

  defp scenario(:killed_network) do
    {network, peer} = connect()
    flood = flood(peer)
    receive_frames(1, 100)
    Process.exit(network, :kill)
    ended(network)
    ended(flood)
  end

  defp scenario(:killed_callback) do
    test = self()

    {callback, monitor} =
      spawn_monitor(fn ->
        {_network, peer} = connect()
        send(test, {:flood, flood(peer)})
        receive_frames(1, 100)
        Process.exit(self(), :kill)
      end)

    receive do: ({:DOWN, ^monitor, :process, ^callback, reason} -> :killed = reason)
    receive do: ({:flood, flood} -> ended(flood))
  end

  defp scenario(:killed_receiver) do
    {socket, peer} = Peer.pair(transport())
    {:ok, receiver} = Network.Receiver.start_link(socket, self(), self(), self())
    if :rand.uniform(2) == 1, do: Peer.send(peer, "CONNECTED\n\n\0MESSAGE\n\nx")
    Process.sleep(:rand.uniform(3) - 1)
    Process.exit(receiver, :kill)
    ended(receiver)
    Connection.close(socket)
    Peer.assert_closed(peer)
  end

  defp scenario(:refused) do
    listener = Peer.listen(:tcp)
    {:ok, _network} = Network.start_link(self(), {127, 0, 0, 1}, Peer.port(listener))
    peer = Peer.accept(listener)
    cast(:connect)
    Peer.send(peer, "ERROR\nmessage:no\n\n\0")
    Peer.close(peer)

    {:barytherium, :frames, {[%Frame{command: :error}], _sender}} = cast(:frames)

    disconnected(:closed)
  end

  # A network that has received CONNECTED, and its peer.
  defp transport, do: Process.get(:transport)

  defp connect(opts \\ [], heart_beat \\ "0,0") do
    listener = Peer.listen(transport())
    opts = opts ++ Peer.options(transport())
    {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, Peer.port(listener), opts)
    peer = Peer.accept(listener)
    {:barytherium, :connect, {:ok, sender}} = cast(:connect)
    headers = [{"accept-version", "1.2"}, {"heart-beat", heart_beat}]
    Sender.write(sender, [%Frame{command: :connect, headers: headers}])
    {:ok, "CONNECT" <> _headers} = Connection.recv(peer, 0, @patience)
    Peer.send(peer, @connected)

    {:barytherium, :frames, {[%Frame{command: :connected}], ^sender}} = cast(:frames)

    {network, peer}
  end

  # Sends `count` frames, and checks that all arrive whole and in order.
  defp feed(peer, count, body, think \\ fn -> :ok end) do
    sender = spawn_link(fn -> send_frames(peer, 1, count, body) end)
    receive_frames(1, count, body, think)
    ended(sender)
    Peer.close(peer)
    disconnected(:closed)
  end

  defp send_frames(_peer, first, last, _body) when first > last, do: :ok

  defp send_frames(peer, first, last, body) do
    next = min(first + :rand.uniform(100), last + 1)
    Peer.send(peer, frames(first..(next - 1), body))
    send_frames(peer, next, last, body)
  end

  defp flood(peer) do
    spawn_link(fn -> Stream.iterate(1, &(&1 + 1)) |> Enum.find(&(send_one(peer, &1) != :ok)) end)
  end

  defp send_one(peer, n), do: Connection.send(peer, frames(n..n, 500))

  defp frames(numbers, body) do
    for n <- numbers do
      ["MESSAGE\nn:#{n}\ndestination:/topic/a\ncontent-length:#{body}\n\n", body(n, body), "\0\n"]
    end
  end

  defp body(n, size), do: :binary.copy(<<n &&& 0xFF>>, size)

  defp receive_frames(first, last, body \\ nil, think \\ fn -> :ok end)
  defp receive_frames(first, last, _body, _think) when first > last, do: :ok

  defp receive_frames(first, last, body, think) do
    {:barytherium, :frames, {frames, _sender}} = cast(:frames)
    think.()
    frames |> Enum.reduce(first, &check(&1, &2, body)) |> receive_frames(last, body, think)
  end

  defp check(%Frame{command: :message, headers: [{"n", n} | _], body: got}, expected, size) do
    ^expected = String.to_integer(n)
    true = is_nil(size) or got == body(expected, size)
    expected + 1
  end

  defp disconnected(reason) do
    {:barytherium, :disconnect, ^reason} = cast(:disconnect)

    receive do
      {:"$gen_cast", _message} = more -> raise("a message after the disconnect: #{inspect(more)}")
    after
      0 -> :ok
    end
  end

  defp cast(event) do
    receive do
      {:"$gen_cast", {:barytherium, ^event, _value} = message} -> message
    after
      @patience -> raise("no #{event}: #{inspect(Process.info(self(), :messages))}")
    end
  end

  defp ended(pid) do
    monitor = Process.monitor(pid)
    receive do: ({:DOWN, ^monitor, :process, ^pid, _reason} -> :ok)
  end
end

[minutes, growth] = Enum.map(System.argv(), &String.to_integer/1)
Soak.run(minutes, growth)
