defmodule Barytherium.ConformanceTest do
  @moduledoc """
  Runs the conformance cases through the native library: parses them, encodes them, and receives them
  from a socket.
  """
  use Barytherium.ReceiverCase, async: true

  alias Barytherium.{Conformance, Native, ParseError}
  alias Barytherium.Network.{Options, Parser, Receiver, Socket}

  # Each test does tens of thousands of runs, which take minutes on a busy machine.
  @moduletag timeout: 600_000

  describe "Frame.parse_all/2" do
    test "parses every case as it says, cut at every point" do
      for case <- Conformance.decoding(),
          # Only connections check the first frame.
          not match?({:unexpected_first_frame, _offset}, case.error),
          version <- case.versions,
          pieces <- [Conformance.bytes(case.input) | Conformance.cuts(case.input)] do
        outcome = parse(pieces, Frame.parse_state([version: version] ++ case.options))

        assert {case.name, version, pieces, outcome} ==
                 {case.name, version, pieces, expected(case)}
      end
    end
  end

  describe "Frame.format/2" do
    test "encodes every case as it says" do
      for %{encodes: %Frame{} = frame} = case <- Conformance.cases(), version <- case.versions do
        if case.error,
          do: assert_raise(ArgumentError, fn -> Frame.format(frame, version) end),
          else: assert(IO.iodata_to_binary(Frame.format(frame, version)) == case.input)
      end
    end
  end

  describe "over a socket" do
    # The test takes the slices itself, without a receiver. So it can wait until each piece was read
    # before it sends the next one, and knows where the input was cut.
    test "every case is received as it says, cut at every point" do
      for case <- Conformance.decoding(),
          version <- case.versions,
          pieces <- Conformance.cuts(case.input) do
        outcome = read(case, version, pieces)

        assert {case.name, version, pieces, outcome} ==
                 {case.name, version, pieces, expected(case)}
      end
    end

    for transport <- Peer.transports() do
      test "a receiver gets every case byte by byte (#{transport})" do
        for case <- Conformance.decoding(), version <- case.versions do
          outcome = receive_bytes(unquote(transport), case, version)
          {frames, error} = expected(case)
          expected = {frames, if(error, do: :parse_error, else: :closed)}
          assert {case.name, version, outcome} == {case.name, version, expected}
        end
      end
    end
  end

  defp expected(case), do: {case.frames, case.error}

  defp parse(pieces, state, frames \\ [])
  defp parse([], _state, frames), do: {frames, nil}

  defp parse([piece | pieces], state, frames) do
    case Frame.parse_all(piece, state) do
      {:ok, more, state} -> parse(pieces, state, frames ++ more)
      {:error, %ParseError{} = error} -> {frames ++ error.frames, {error.rule, error.offset}}
    end
  end

  defp loop(socket, case, version) do
    options = Options.check!(case.options)

    %{
      socket: socket,
      listener_pid: self(),
      network_pid: self(),
      sender_pid: self(),
      own_listener: true,
      parse_state: Frame.parse_state([version: version] ++ case.options),
      hb_recv: if(version, do: 0),
      options: options,
      stats: Native.new_stats()
    }
  end

  defp read(case, version, pieces) do
    {socket, peer} = Peer.pair()
    {:ok, descriptor} = Socket.descriptor(socket)
    {:ok, parser} = Parser.open(descriptor, "", loop(socket, case, version))
    next = Parser.read_dirty(parser)
    outcome = feed(pieces, next, parser, peer)
    Parser.disconnect(parser, :closed)
    Enum.each([socket, peer], &Peer.close/1)
    outcome
  end

  defp feed(_pieces, {:stop, :parse_error, {rule, offset, _excerpt, _text}}, _parser, _peer),
    do: {delivered(), {rule, offset}}

  defp feed(_pieces, {:stop, :closed, {:refused, _message, _line}}, _parser, _peer),
    do: {delivered(), nil}

  defp feed(pieces, {:connected_frame, _frame}, parser, peer) do
    Parser.agree(parser, 0)
    feed(pieces, Parser.read_dirty(parser), parser, peer)
  end

  defp feed(pieces, next, parser, peer) when next in [:read_dirty, :read_inline],
    do: feed(pieces, Parser.read_dirty(parser), parser, peer)

  defp feed(["" | pieces], next, parser, peer), do: feed(pieces, next, parser, peer)
  defp feed([], {:await_input, _timeout}, _parser, _peer), do: {delivered(), nil}

  defp feed([piece | pieces], {:await_input, _timeout}, %{reference: reference} = parser, peer) do
    Peer.send(peer, piece)
    assert_receive {:select, _socket, ^reference, :ready_input}
    feed(pieces, Parser.read_dirty(parser), parser, peer)
  end

  defp delivered do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}} -> frames ++ delivered()
    after
      0 -> []
    end
  end

  defp receive_bytes(transport, case, version) do
    {socket, peer} = Peer.pair(transport)
    state = loop(socket, case, version)
    receiver = Task.async(fn -> Receiver.loop(%{state | options: case.options}) end)
    # Sending may fail, because the receiver may close before the last byte.
    Enum.each(Conformance.bytes(case.input), &Peer.try_send(peer, &1))
    Peer.close(peer)
    outcome = collect([])
    Task.await(receiver)
    outcome
  end

  defp collect(frames) do
    receive do
      {:"$gen_cast", {:barytherium, :frames, {more, _sender}}} ->
        collect(frames ++ more)

      {:"$gen_call", from, {:connected_frame, _frame}} ->
        GenServer.reply(from, {0, 0})
        collect(frames)

      {:"$gen_cast", {:barytherium, :disconnect, reason}} ->
        {frames, reason}
    end
  end
end
