defmodule Barytherium.Client.Routing do
  @moduledoc false
  # Which process gets the messages of a subscription. The receive loop sends them there (see
  # `Barytherium.Native.put_route/4`); what has no route comes to the client. The functions run in the
  # client, and take its data.

  alias Barytherium.Client.{Events, Handlers, Session}
  alias Barytherium.Frame
  alias Barytherium.Native

  @doc "To be called before SUBSCRIBE is written, so that every message has its route."
  @spec put(Session.subscription(), map()) :: :ok
  def put(subscription, %{handlers: %Handlers{pid: pid}} = data) when pid != nil,
    # The consumer's process knows by the sender which connection a message is from.
    do: Native.put_route(data.routes, Session.id(data.session, subscription), pid, data.sender)

  def put(%{number: number} = subscription, data) do
    with %{pid: pid} when is_pid(pid) and node(pid) == node() <- data.subscriptions[number],
         do: Native.put_route(data.routes, Session.id(data.session, subscription), pid, self())

    :ok
  end

  @spec delete(Session.subscription(), map()) :: :ok
  def delete(_subscription, %{session: nil}), do: :ok

  def delete(subscription, data),
    do: Native.delete_route(data.routes, Session.id(data.session, subscription))

  @doc "Passes on a message that has no route."
  @spec relay(Frame.t(), map()) :: :ok
  def relay(frame, data) do
    number = data.session && Session.number(data.session, frame)

    case data.subscriptions[number] do
      # On another node.
      %{pid: pid, ending: false} when is_pid(pid) and node(pid) != node() ->
        GenServer.cast(pid, {:barytherium, :frames, {[frame], self()}})

      nil when number == nil ->
        Events.unexpected(frame, data)

      # Its subscription ends, or has ended. The broker delivers it again to another subscriber.
      _ended ->
        :ok
    end
  end
end
