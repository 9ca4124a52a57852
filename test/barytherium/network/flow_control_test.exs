defmodule Barytherium.Network.FlowControlTest do
  @moduledoc "What happens when more is written than the broker reads."
  use ExUnit.Case, async: true

  import Barytherium.NetworkCase
  import Barytherium.ReceiverCase, only: [eventually: 1]
  import ExUnit.CaptureLog

  alias Barytherium.{Client, Connection, Frame, Network, Peer, TestBroker}
  alias Barytherium.Network.Sender

  @moduletag capture_log: true

  @window 1024 * 1024

  defp frame(number, size) do
    headers = [{"n", to_string(number)}]
    %Frame{command: :send, headers: headers, body: :binary.copy("x", size)}
  end

  # A connection whose peer reads nothing, and whose writer is busy with a frame of 20 MB.
  defp blocked(opts \\ []) do
    {network, peer} = connect(self(), opts)
    {network, sender} = connected(network, peer)
    eventually(fn -> :sys.get_state(network).is_agreed end)
    Sender.write(sender, [frame(0, 20_000_000)])
    eventually(fn -> Network.stats(network).frames_written == 2 end)
    {network, sender, peer}
  end

  defp write(sender, frames, timeout \\ :infinity),
    do: Task.async(fn -> Sender.write_within(sender, frames, timeout) end)

  # Writes, and waits until the write has reached the sender.
  defp write_now(sender, frames, timeout \\ :infinity) do
    task = write(sender, frames, timeout)
    eventually(fn -> Process.info(task.pid, :current_function) != nil and waiting?(task.pid) end)
    :sys.get_state(sender)
    task
  end

  defp waiting?(pid),
    do: match?({:current_function, {:gen, _, _}}, Process.info(pid, :current_function))

  # The numbers of the frames that a peer reads, until it has read that of `last`.
  defp read_numbers(peer, last, state \\ Frame.parse_state(), read \\ []) do
    {:ok, data} = Connection.recv(peer, 0, 5_000)
    {:ok, frames, state} = Frame.parse_all(data, state)

    numbers =
      for %Frame{headers: headers} <- frames, {"n", n} <- headers, do: String.to_integer(n)

    read = read ++ numbers
    if last in read, do: read, else: read_numbers(peer, last, state, read)
  end

  test "writes that wait for room are all written, whole, and each caller is told" do
    {network, sender, peer} = blocked()
    tasks = for n <- 1..256, do: write(sender, [frame(n, 300_000)])
    eventually(fn -> map_size(:sys.get_state(sender).admission.entries) > 250 end)
    assert Network.stats(network).bytes_waiting <= @window
    reading = Task.async(fn -> Enum.sort(read_all_numbers(peer, 257)) end)
    assert Task.await_many(tasks, 60_000) == List.duplicate(:ok, 256)
    assert Task.await(reading) == Enum.to_list(0..256)
    assert %{is_connected: true} = :sys.get_state(network)
  end

  defp read_all_numbers(peer, count, state \\ Frame.parse_state(), read \\ [])
  defp read_all_numbers(_peer, 0, _state, read), do: read

  defp read_all_numbers(peer, count, state, read) do
    {:ok, data} = Connection.recv(peer, 0, 5_000)
    {:ok, frames, state} = Frame.parse_all(data, state)

    numbers =
      for %Frame{headers: headers} <- frames, {"n", n} <- headers, do: String.to_integer(n)

    read_all_numbers(peer, count - length(numbers), state, numbers ++ read)
  end

  test "of a write that found no room in its time nothing is written" do
    {_network, sender, peer} = blocked()
    first = write_now(sender, [frame(1, 10)])
    large = write_now(sender, [frame(2, 2_000_000)])
    late = for n <- 3..50, do: write(sender, [frame(n, 2_000_000)], 200)
    assert Task.await_many(late) |> Enum.uniq() == [{:error, :timeout}]
    last = write_now(sender, [frame(51, 10)])
    assert read_numbers(peer, 2) -- [51] == [0, 1, 2]
    assert Task.await_many([first, large, last]) == [:ok, :ok, :ok]
  end

  test "a write whose time is over while it is being written may arrive" do
    {_network, sender, peer} = blocked()
    # There is room for this one.
    assert Sender.write_within(sender, [frame(1, 10)], 10) == {:error, :unconfirmed}
    assert read_numbers(peer, 1) == [0, 1]
  end

  test "large writes and small ones take turns" do
    {_network, sender, peer} = blocked()
    larges = for n <- 1..8, do: write_now(sender, [frame(n, 3_000_000)])
    # More than the window, so that most of them wait.
    smalls = for n <- 101..160, do: write_now(sender, [frame(n, 60_000)])
    read = Task.async(fn -> read_all_numbers(peer, 69) end)
    assert Task.await_many(larges ++ smalls, 20_000) |> Enum.uniq() == [:ok]
    [0 | order] = read |> Task.await() |> Enum.reverse()
    # 60 small ones have as many bytes as one large one and a bit.
    {before, _after} = Enum.split(order, 64)
    assert Enum.count(before, &(&1 > 100)) == 60
    assert Enum.filter(order, &(&1 < 100)) == Enum.to_list(1..8)
    assert Enum.filter(order, &(&1 > 100)) == Enum.to_list(101..160)
  end

  test "what cannot wait does not wait behind what can" do
    {_network, sender, peer} = blocked()
    tasks = for n <- 1..8, do: write_now(sender, [frame(n, 3_000_000)])
    Sender.write(sender, [%Frame{command: :ack, headers: [{"n", "9"}]}])
    assert read_numbers(peer, 9) |> length() <= 3
    reading = Task.async(fn -> Peer.read_all(peer) end)
    Task.await_many(tasks)
    Task.shutdown(reading)
  end

  test "writes that cannot wait end the connection when there are too many, and the log says why" do
    log =
      capture_log(fn ->
        {_network, sender, _peer} = blocked(max_send_queue: 1_000_000)
        waiting = write_now(sender, [frame(1, 100_000)])
        for n <- 2..4, do: Sender.write(sender, [frame(n, 400_000)])
        assert_receive {:"$gen_cast", {:barytherium, :disconnect, :enobufs}}
        assert Task.await(waiting) == {:error, :enobufs}
      end)

    assert log =~ "given faster than the broker reads; Sender.write/3 waits for it"
  end

  test "waiting writes are not counted among those that cannot wait" do
    {_network, sender, peer} = blocked(max_send_queue: 1_000_000)
    task = write_now(sender, [frame(1, 900_000)])
    for n <- 2..4, do: Sender.write(sender, [frame(n, 200_000)])
    assert read_numbers(peer, 4) == [0, 1, 2, 3, 4]
    assert Task.await(task) == :ok
  end

  test "a write that comes while one that is too late is given up does not wait for more" do
    {_network, sender, peer} = blocked()
    reading = Task.async(fn -> read_all_numbers(peer, 3) end)
    first = write_now(sender, [frame(1, 2_000_000)])
    # Its time is over before the sender looks at it, and the writer is done.
    :sys.suspend(sender)
    late = write(sender, [frame(9, 10)], 50)
    Process.sleep(100)
    next = write(sender, [frame(2, 10)])
    eventually(fn -> waiting?(next.pid) end)
    :sys.resume(sender)
    assert Task.await(late) == {:error, :timeout}
    assert Task.await_many([first, next]) == [:ok, :ok]
    assert Enum.sort(Task.await(reading)) == [0, 1, 2]
  end

  test "of a caller that was killed while it waited nothing is written, and nothing is kept" do
    {_network, sender, peer} = blocked()
    kept = write_now(sender, [frame(1, 10)])
    {:ok, pid} = Task.start(fn -> Sender.write(sender, [frame(9, 2_000_000)], :sync) end)
    eventually(fn -> map_size(:sys.get_state(sender).admission.entries) == 1 end)
    Process.exit(pid, :kill)
    eventually(fn -> :sys.get_state(sender).admission.entries == %{} end)
    last = write_now(sender, [frame(2, 10)])
    assert read_numbers(peer, 2) == [0, 1, 2]
    assert Task.await_many([kept, last]) == [:ok, :ok]
  end

  test "what cannot wait takes no room from what can" do
    {_network, sender, peer} = blocked()
    for n <- 1..4, do: Sender.write(sender, [frame(n, 1_000_000)])
    tasks = for n <- 11..20, do: write_now(sender, [frame(n, 10)])
    assert :sys.get_state(sender).admission.entries == %{}
    assert read_numbers(peer, 20) == Enum.to_list(0..4) ++ Enum.to_list(11..20)
    assert tasks |> Task.await_many() |> Enum.uniq() == [:ok]
  end

  test "a slow peer has the time of a write for each MiB" do
    {network, peer} = connect(self(), send_timeout: 2_000, send_buffer: 65_536)
    {_network, sender} = connected(network, peer)
    :ok = :inet.setopts(peer, recbuf: 65_536)
    writing = write(sender, [frame(1, 5_000_000)])
    # 50 pieces with pauses take longer than the time of one write.
    for _n <- 1..50 do
      {:ok, _data} = Connection.recv(peer, 100_000, 5_000)
      Process.sleep(50)
    end

    assert Task.await(writing) == :ok
  end

  test "Network.close/2 ends the waiting, and nothing is written after the DISCONNECT" do
    {network, sender, peer} = blocked()
    waiting = for n <- 1..3, do: write_now(sender, [frame(n, 2_000_000)])
    closing = Task.async(fn -> Network.close(network, 2_000) end)
    reading = Task.async(fn -> Peer.read_all(peer) end)
    assert Task.await_many(waiting) == List.duplicate({:error, :closed}, 3)
    Sender.write(sender, [frame(9, 1)])
    assert Sender.write(sender, [frame(9, 1)], :sync) == {:error, :closed}
    assert Task.await(closing, 10_000) == {:error, :timeout}
    {read, _reason} = Task.await(reading, 10_000)
    assert [_before, "receipt:" <> rest] = String.split(read, "DISCONNECT\n")
    assert rest =~ ~r/\Abarytherium-close-\d+\n\n\0\n*\z/
  end

  describe "a client" do
    setup do
      broker = start_supervised!(TestBroker)
      url = "stomp://127.0.0.1:#{TestBroker.port(broker)}"
      client = start_supervised!({Client, url: url})
      %{client: client}
    end

    test "publishes more than fits at once", %{client: client} do
      for {count, size} <- [{80, 1_000_000}, {8, 20_000_000}, {2, 50_000_000}] do
        messages = List.duplicate({"/queue/a", :binary.copy("x", size)}, count)
        assert Client.publish_many(client, messages, wait: true, timeout: 20_000) == :ok
      end

      assert Client.status(client).connections == 1
    end

    test "publishes for many callers at once", %{client: client} do
      for {callers, size} <- [{256, 300_000}, {10_000, 100}] do
        publish = fn ->
          body = :binary.copy("x", size)
          Client.publish(client, "/queue/a", body, wait: true, timeout: 60_000)
        end

        tasks = for _n <- 1..callers, do: Task.async(publish)
        assert tasks |> Task.await_many(60_000) |> Enum.uniq() == [:ok]
      end

      assert Client.status(client).connections == 1
    end
  end
end
