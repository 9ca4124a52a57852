defmodule Barytherium.PublishRefusedTest do
  @moduledoc "What becomes of messages that are kept, and that the broker refuses."
  use Barytherium.ClientCase, async: true

  alias Barytherium.Error

  test "one that is refused without its name is found, and the others are sent" do
    {client, peer, listener} = connected_client(spool: :memory, listener: self())
    references = for n <- 1..5, do: elem(Client.publish_async(client, "/queue/a", "#{n}"), 1)
    refuse_third(peer, listener)

    for {reference, n} <- Enum.with_index(references, 1),
        n != 3,
        do: assert_receive({:barytherium, :published, {^reference, :ok}})

    third = Enum.at(references, 2)
    assert_receive {:barytherium, :published, {^third, {:error, %Error{reason: :refused}}}}

    assert_receive {:barytherium, :client,
                    {{:not_published, %{frame: %Frame{body: "3"}, error: %Error{}}}, ^client}}

    assert %{publishing: 0} = Client.status(client)
  end

  # A broker that refuses the third message, as one does that ends the connection and does not say why.
  defp refuse_third(peer, listener) do
    case expect(peer, :send) do
      {_headers, "3"} ->
        reply(peer, :error, [{"message", "no"}])
        Peer.close(peer)
        listener |> accept_connected() |> refuse_third(listener)

      {headers, body} ->
        # The receipt of the second one is lost with the connection the first time.
        unless body == "2" and Process.put(:lost, true) == nil, do: receipt(peer, headers)
        if body != "5", do: refuse_third(peer, listener)
    end
  end

  # Where the ERROR is lost otherwise, the broker closes the connection before it has read everything.
  for {error, refused} <- [always: ["1", "3000", "3001"], alone: ["3000"]] do
    test "refused messages among many are found in a few connections (an ERROR: #{error})" do
      {client, peer, listener} = connected_client(spool: :memory)
      refused = unquote(refused)
      lists = Enum.chunk_every(1..5_000, 7)

      expected =
        for list <- lists,
            {:ok, _reference} =
              Client.publish_many_async(client, for(n <- list, do: {"/queue/a", "#{n}"})),
            positions =
              for({n, position} <- Enum.with_index(list), "#{n}" in refused, do: position),
            positions != [],
            do: positions

      broker = Task.async(fn -> refuse(peer, listener, refused, unquote(error)) end)
      :ok = :gen_tcp.controlling_process(peer, broker.pid)
      assert Client.flush(client, 20_000) == :ok

      failed =
        for _list <- lists,
            assert_received({:barytherium, :published, {_reference, result}}),
            {:error, %Error{reason: :refused}, positions} <- [result],
            do: positions

      assert failed == expected

      # For each of them three connections on which it is alone, one on which it is withheld, and those before, with 5,000,
      # 312, 19 and 1 messages; without an ERROR one more, on which something before it is confirmed.
      assert Client.status(client).connections <= 9 * length(refused)
      Task.shutdown(broker, :brutal_kill)
    end
  end

  defp refuse(peer, listener, refused, error) do
    {:ok, data} = Barytherium.Connection.recv(peer, 0, 20_000)
    {:ok, frames, state} = Frame.parse_all(data, Process.get(peer) || Frame.parse_state())
    Process.put(peer, state)
    {good, bad} = Enum.split_while(frames, &(&1.body not in refused))

    for frame <- good,
        do: reply(peer, :receipt, [{"receipt-id", Frame.header(frame, "receipt")}])

    if bad == [] do
      refuse(peer, listener, refused, error)
    else
      if error == :always or length(frames) == 1, do: reply(peer, :error, [{"message", "no"}])
      # Reads the rest, so that the end is no reset.
      :gen_tcp.shutdown(peer, :write)
      read_all(peer)
      listener |> accept_connected() |> refuse(listener, refused, error)
    end
  end

  defp read_all(peer) do
    case Barytherium.Connection.recv(peer, 0, 20_000) do
      {:ok, _data} -> read_all(peer)
      {:error, :closed} -> Peer.close(peer)
    end
  end

  test "a list that is suspect is not overtaken" do
    {client, peer, listener} = connected_client(spool: :memory)
    {:ok, _list} = Client.publish_many_async(client, for(n <- 1..3, do: {"/queue/a", "#{n}"}))
    expect(peer, :send)
    reply(peer, :error, [{"message", "no"}])
    Peer.close(peer)
    eventually(fn -> Client.status(client).state != :connected end)
    for n <- 4..6, do: {:ok, _reference} = Client.publish_async(client, "/queue/a", "#{n}")
    peer = accept_connected(listener)
    assert for(_n <- 1..6, do: elem(confirm(peer, :send), 1)) == ~w(1 2 3 4 5 6)
  end

  test "one that is refused is found beside other requests" do
    {client, peer, listener} = connected_client(spool: :memory)
    # It never gets an answer.
    waiting = Task.async(fn -> keep_asking(client) end)
    {:ok, bad} = Client.publish_async(client, "/queue/a", "bad")
    {:ok, good} = Client.publish_async(client, "/queue/a", "good")
    broker = Task.async(fn -> refuse_bad(peer, listener) end)
    :ok = :gen_tcp.controlling_process(peer, broker.pid)
    assert_receive {:barytherium, :published, {^bad, {:error, %Error{reason: :refused}}}}
    assert_receive {:barytherium, :published, {^good, :ok}}
    for task <- [waiting, broker], do: Task.shutdown(task, :brutal_kill)
  end

  defp keep_asking(client) do
    Client.request(client, "/queue/a", "question", timeout: 1_000, wait: true)
    keep_asking(client)
  end

  defp refuse_bad(peer, listener) do
    case next_frame(peer) do
      %Frame{command: :send, body: "bad"} ->
        reply(peer, :error, [{"message", "no"}])
        Peer.close(peer)
        listener |> accept_connected() |> refuse_bad(listener)

      %Frame{command: :send, body: "good"} = frame ->
        receipt(peer, %{"receipt" => Frame.header(frame, "receipt")})
        refuse_bad(peer, listener)

      _other ->
        refuse_bad(peer, listener)
    end
  end

  test "nothing is lost while something else is refused on every connection" do
    {client, peer, listener} = connected_client(spool: :memory)
    broker = Task.async(fn -> refuse_elsewhere(peer, listener) end)
    :ok = :gen_tcp.controlling_process(peer, broker.pid)
    bad = Task.async(fn -> publish_bad(client) end)
    {:ok, list} = Client.publish_many_async(client, for(n <- 1..3, do: {"/queue/a", "#{n}"}))
    # It may get through meanwhile. Long enough for it to be withheld several times.
    eventually(fn -> Client.status(client).connections > 30 end)
    Task.shutdown(bad, :brutal_kill)
    assert_receive {:barytherium, :published, {^list, :ok}}
    Task.shutdown(broker, :brutal_kill)
  end

  defp publish_bad(client) do
    Client.publish(client, "/queue/bad", "x", wait: true)
    publish_bad(client)
  end

  # It handles frames in their order.
  defp refuse_elsewhere(peer, listener) do
    frame = next_frame(peer)

    if Frame.header(frame, "destination") == "/queue/bad" do
      reply(peer, :error, [{"message", "no"}])
      Peer.close(peer)
      listener |> accept_connected() |> refuse_elsewhere(listener)
    else
      # It takes a while to store it.
      Process.sleep(1)
      receipt(peer, %{"receipt" => Frame.header(frame, "receipt")})
      refuse_elsewhere(peer, listener)
    end
  end

  test "an ERROR that concerns something else loses nothing" do
    {client, peer, listener} = connected_client(spool: :memory)
    {:ok, reference} = Client.publish_async(client, "/queue/a", "x")

    peer =
      for _n <- 1..2, reduce: peer do
        peer ->
          expect(peer, :send)
          reply(peer, :error, [{"message", "the broker stops"}])
          Peer.close(peer)
          accept_connected(listener)
      end

    confirm(peer, :send)
    assert_receive {:barytherium, :published, {^reference, :ok}}
  end
end
