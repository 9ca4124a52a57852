defmodule Barytherium.LimitsTest do
  @moduledoc """
  Limits, and memory while a peer tries to exhaust it. Not async, because the tests measure the
  resident memory of the whole operating system process.
  """
  use Barytherium.ReceiverCase, async: false

  import ExUnit.CaptureLog

  alias Barytherium.{Network, ParseError}

  @mib 1024 * 1024

  # Far above what a session needs and what a mailbox may hold. Far below what the peers send or
  # announce, and what their frames would take up as terms.
  @most_growth 192 * @mib

  # After this many bytes an endless peer stops, and the test fails.
  @flood 1024 * @mib

  describe "through Network.start_link/4" do
    for {name, option, at, over} <- [
          {"max_header_line", {:max_header_line, 12}, "MESSAGE\nk:3456789012\n\n\0",
           "MESSAGE\nk:34567890123"},
          {"max_headers", {:max_headers, 2}, "MESSAGE\na:1\nb:2\n\n\0",
           "MESSAGE\na:1\nb:2\nc:3\n"},
          {"max_body", {:max_body, 4}, "MESSAGE\n\n1234\0", "MESSAGE\n\n12345"},
          {"max_body, declared", {:max_body, 4}, "MESSAGE\ncontent-length:4\n\n1234\0",
           "MESSAGE\ncontent-length:5\n"}
        ],
        transport <- [:tcp, :tls, :ssl, :ws] do
      test "#{transport}, #{name}: accepted at the limit, refused one over it while bytes arrive" do
        {_network, peer} = connect([unquote(option)], unquote(transport))
        Peer.send(peer, unquote(at))
        assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :message}], _}}}
        Peer.send(peer, unquote(over))
        assert_receive {:"$gen_cast", {:barytherium, :disconnect, :parse_error}}
        Peer.assert_closed(peer)
      end
    end

    test "escapes: :lenient keeps undefined escapes" do
      {_network, peer} = connect(escapes: :lenient)
      Peer.send(peer, "MESSAGE\na:\\t\n\n\0")
      assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{headers: headers}], _}}}
      assert headers == [{"a", "\\t"}]
    end
  end

  describe "a parse error" do
    test "is logged once, at level error, with the rule and the offset, and as metadata" do
      {receiver, peer, _socket} = start_connected()
      :ok = :logger.add_handler(__MODULE__, __MODULE__, %{config: %{test: self()}})
      on_exit(fn -> :logger.remove_handler(__MODULE__) end)
      good = "MESSAGE\na:b\n\n\0"

      log =
        capture_log(fn ->
          Peer.send(peer, good <> "MESSAGE\nlogin:me\\t\n\n\0")
          assert [%Frame{}] = receive_frames()
          assert_disconnect(:parse_error, receiver)
        end)

      assert log =~ "[error]"
      offset = byte_size(connected_bytes() <> good <> "MESSAGE\nlogin:me")
      assert log =~ "at byte #{offset}"
      refute log =~ "me\\"

      assert_receive {:logged, %{level: :error, meta: %{barytherium_parse_error: error}}}
      assert %ParseError{rule: :undefined_escape, offset: ^offset, frames: []} = error
      refute_receive {:logged, _again}, 50
    end
  end

  # This is the only known way to make the native code panic.
  test "no memory for a body is a panic that ends only its connection" do
    beams = Path.join(Mix.Project.app_path(), "ebin")

    {output, status} =
      System.cmd("elixir", ["-pa", beams, "test/fixtures/out_of_memory.exs"],
        stderr_to_stdout: true
      )

    assert status == 0, output
    assert output =~ "ended a connection because its native code panicked"
    assert output =~ "out of memory for a body of 100000000 "
    assert output =~ "some are refused, and some are not: [:closed, :parse_error]"
    assert output =~ "still here"
    assert output =~ "and is closed"
    assert output =~ "left: 0"
  end

  for transport <- [:tcp, :tls, :ssl, :ws] do
    describe "#{transport}: resident memory stays bounded under" do
      @transport transport

      test "an endless line" do
        assert_refused(
          @transport,
          "a header line longer than the limit",
          "MESSAGE\n",
          :binary.copy("x", @mib)
        )
      end

      test "endless headers" do
        assert_refused(
          @transport,
          "more headers than the limit",
          "MESSAGE\n",
          :binary.copy("a:b\n", 1000)
        )
      end

      test "a body without end" do
        assert_refused(
          @transport,
          "a body larger than the limit",
          "MESSAGE\n\n",
          :binary.copy("x", @mib),
          max_body: 4 * @mib
        )
      end

      test "a content-length of 99 GB, which is refused, or accepted without reserving memory" do
        head = "MESSAGE\ncontent-length:99000000000\n\n"
        assert_refused(@transport, "a body larger than the limit", head, "")

        {receiver, peer, _socket} = start_connected(@transport, max_body: :infinity)

        grown =
          growth(fn ->
            Peer.send(peer, head <> "begin")
            read(receiver)
          end)

        assert grown < @most_growth
        Peer.close(peer)
        assert_disconnect(:closed, receiver)
      end

      test "endless empty frames" do
        frame = "MESSAGE\n\n\0"
        frames = :binary.copy(frame, 10_000)
        assert_passes(@transport, frames, 10_000)
      end

      test "endless heart-beats" do
        assert_passes(@transport, :binary.copy("\n", @mib), 0)
      end
    end
  end

  @doc false
  def log(event, %{config: %{test: test}}) do
    if Map.has_key?(event.meta, :barytherium_parse_error), do: send(test, {:logged, event})
  end

  defp connect(opts, transport \\ :tcp) do
    listener = Peer.listen(transport)
    opts = opts ++ Peer.options(transport)
    {:ok, network} = Network.start_link(self(), "127.0.0.1", Peer.port(listener), opts)
    peer = Peer.accept(listener, transport)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, _sender}}}
    Peer.send(peer, "CONNECTED\nversion:1.2\n\n\0")
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
    {network, peer}
  end

  defp assert_refused(transport, reason, head, endless, opts \\ []) do
    {receiver, peer, _socket} = start_connected(transport, opts)

    log =
      capture_log(fn ->
        grown = growth(fn -> Peer.try_send(peer, head) && flood(peer, endless, @flood) end)
        assert grown < @most_growth
        assert_disconnect(:parse_error, receiver)
      end)

    assert log =~ ~r/Barytherium ended the connection to 127.0.0.1:\d+: #{reason}/
  end

  # The peer sends all the time, and the listener keeps up.
  defp assert_passes(transport, bytes, frames_each) do
    {socket, peer} = Peer.pair(transport)
    times = 600
    test = self()
    counter = spawn_link(fn -> count_frames(1 + times * frames_each, test) end)
    {:ok, receiver} = Receiver.start_link(socket, counter, self(), self())
    Peer.send(peer, connected_bytes())
    reply_heart_beats(0)

    grown =
      growth(fn ->
        for _time <- 1..times, do: Peer.send(peer, bytes)
        assert_receive :counted, 60_000
        Peer.close(peer)
        assert_disconnect(:closed, receiver)
      end)

    assert grown < @most_growth
  end

  defp count_frames(0, test) do
    send(test, :counted)
    Process.sleep(:infinity)
  end

  defp count_frames(left, test) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} ->
        count_frames(left - length(frames), test)
    end
  end

  defp flood(_peer, "", _left), do: :ok
  defp flood(_peer, _bytes, left) when left <= 0, do: flunk("the peer was never refused")

  defp flood(peer, bytes, left) do
    case Peer.try_send(peer, bytes) do
      :ok -> flood(peer, bytes, left - byte_size(bytes))
      {:error, _closed} -> :ok
    end
  end

  # Waits until the receiver has nothing left to do.
  defp read(receiver) do
    eventually(fn -> Process.info(receiver, :status) == {:status, :waiting} end)
  end

  defp growth(fun) do
    before = resident()
    fun.()
    resident() - before
  end

  defp resident do
    [_all, kib] = Regex.run(~r/VmRSS:\s+(\d+) kB/, File.read!("/proc/self/status"))
    String.to_integer(kib) * 1024
  end
end
