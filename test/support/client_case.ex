defmodule Barytherium.ClientCase do
  @moduledoc "A scripted broker, for tests of the client and of consumers."
  use ExUnit.CaseTemplate

  import Barytherium.ReceiverCase, only: [eventually: 1]

  alias Barytherium.{Frame, Peer}

  using do
    quote do
      import Barytherium.ClientCase
      import Barytherium.ReceiverCase, only: [eventually: 1]
      import ExUnit.CaptureLog

      alias Barytherium.{Client, Frame, Peer}

      @moduletag capture_log: true
    end
  end

  @doc "A listening broker: `{listener, url}`."
  def broker(userinfo \\ "") do
    listener = Peer.listen(:tcp)
    {listener, "stomp://#{userinfo}127.0.0.1:#{Peer.port(listener)}"}
  end

  @doc "Accepts a connection, and returns it with the CONNECT frame."
  def accept(listener) do
    peer = Peer.accept(listener)
    frame = next_frame(peer)
    assert frame.command == :connect
    {peer, frame}
  end

  @doc "Accepts a connection, and answers with CONNECTED. Returns the peer."
  def accept_connected(listener, headers \\ [{"version", "1.2"}]) do
    {peer, _connect} = accept(listener)
    reply(peer, :connected, headers)
    peer
  end

  @doc "A client, linked to the caller."
  def start_client(url, opts \\ []) do
    {:ok, client} = Barytherium.Client.start_link([url: url, backoff: {10, 20}] ++ opts)
    client
  end

  @doc "A client that is connected to a broker of its own: `{client, peer, listener}`."
  def connected_client(opts \\ []) do
    {listener, url} = broker()
    client = start_client(url, opts)
    peer = accept_connected(listener)
    eventually(fn -> Barytherium.Client.status(client).state == :connected end)
    {client, peer, listener}
  end

  @doc "The next frame from the client. Heart-beats are skipped."
  def next_frame(peer) do
    case Process.get({:frames, peer}, {[], Frame.parse_state()}) do
      {[frame | frames], state} ->
        Process.put({:frames, peer}, {frames, state})
        frame

      {[], state} ->
        {:ok, data} = Peer.recv(peer)
        {:ok, frames, state} = Frame.parse_all(data, state)
        Process.put({:frames, peer}, {frames, state})
        next_frame(peer)
    end
  end

  @doc "The next `count` messages of a subscription of this process."
  def receive_messages(_subscription, 0), do: []

  def receive_messages(subscription, count) do
    assert_receive {:barytherium, :messages, {frames, ^subscription}}, 5_000
    frames ++ receive_messages(subscription, count - length(frames))
  end

  @doc "The next frame, which must have this command. Returns its headers as a map, and its body."
  def expect(peer, command) do
    frame = next_frame(peer)
    assert frame.command == command
    {Frame.headers_to_map(frame.headers), frame.body}
  end

  @doc "Expects a frame with this command, and sends the receipt that it asks for."
  def confirm(peer, command) do
    {headers, body} = expect(peer, command)
    receipt(peer, headers)
    {headers, body}
  end

  @doc "Sends the receipt that a frame with these headers asks for."
  def receipt(peer, headers), do: reply(peer, :receipt, [{"receipt-id", headers["receipt"]}])

  @doc "Sends a frame to the client."
  def reply(peer, command, headers, body \\ "") do
    frame = %Frame{command: command, headers: headers, body: body}
    Peer.send(peer, frame |> Frame.format("1.2") |> IO.iodata_to_binary())
  end

  @doc "Sends a message of the subscription with the id `id`."
  def message(peer, id, body, headers \\ []) do
    number = System.unique_integer([:positive])
    own = [{"subscription", id}, {"message-id", "m#{number}"}, {"ack", "a-#{body}"}]
    reply(peer, :message, own ++ headers, body)
  end

  @doc "Expects that nothing more comes."
  def assert_silent(peer) do
    assert {[], _state} = Process.get({:frames, peer}, {[], nil})
    assert {:error, :timeout} = Barytherium.Connection.recv(peer, 0, 50)
  end

  @doc "Subscribes the caller to `/queue/a`: the subscription, and the headers of its SUBSCRIBE."
  def subscribed(client, peer, opts \\ []) do
    opts = Keyword.put_new(opts, :to, self())
    subscribing = Task.async(fn -> Barytherium.Client.subscribe(client, "/queue/a", opts) end)
    {headers, _body} = confirm(peer, :subscribe)
    {:ok, subscription} = Task.await(subscribing)
    {subscription, headers}
  end

  @doc "Starts a consumer with one subscription: `{consumer, peer, subscription_id, listener}`."
  def start_consumer(module, opts \\ [], headers \\ [{"version", "1.2"}]) do
    {listener, url} = broker()
    {:ok, consumer} = module.start_link([url: url, init_arg: self()] ++ opts)
    peer = accept_connected(listener, headers)
    {%{"id" => id}, ""} = confirm(peer, :subscribe)
    {consumer, peer, id, listener}
  end

  @doc "Stops a consumer whose only connection is `peer`."
  def stop_consumer(consumer, peer) do
    stopping = Task.async(fn -> Supervisor.stop(consumer, :shutdown) end)
    disconnect(peer)
    Task.await(stopping)
  end

  @doc "Expects the DISCONNECT of an orderly end, confirms it, and closes."
  def disconnect(peer) do
    confirm(peer, :disconnect)
    Peer.close(peer)
  end
end
