defmodule Barytherium.TestBroker.Temporary do
  @moduledoc false
  # The temporary queues of connections, as a value. A client calls one of its own `/temp-queue/NAME`, and names it in
  # the header `reply-to`. Others see a name that all know: RabbitMQ's is `/reply-queue/...`, and it subscribes the
  # connection by itself; ActiveMQ's is `/remote-temp-queue/...`.

  alias Barytherium.Frame

  @own "/temp-queue/"

  # The shared name of each queue, by its connection and that one's name for it.
  defstruct next: 1, queues: %{}

  @type t :: %__MODULE__{
          next: pos_integer(),
          queues: %{{pid(), own :: binary()} => shared :: binary()}
        }
  @type like :: Barytherium.TestBroker.Session.like()

  @doc "The name that all know of this destination, if it is a temporary queue, and whether that is new."
  @spec shared(t(), like(), pid(), binary()) :: {:new | :known, binary(), t()} | :none
  def shared(state, like, connection, @own <> _name = own) do
    case state.queues do
      %{{^connection, ^own} => name} ->
        {:known, name, state}

      queues ->
        name = name(like, state.next)
        queues = Map.put(queues, {connection, own}, name)
        {:new, name, %{state | next: state.next + 1, queues: queues}}
    end
  end

  def shared(_state, _like, _connection, _other), do: :none

  defp name(:rabbitmq, number), do: "/queue/amq.gen-#{number}"
  defp name(_other, number), do: "/remote-temp-queue/ID:test-broker:#{number}"

  @doc "How the name is written in `reply-to`."
  @spec reply_to(binary()) :: binary()
  def reply_to("/queue/" <> name), do: "/reply-queue/" <> name
  def reply_to(name), do: name

  @doc "Where a message for this destination goes; `:gone` if that was a temporary queue."
  @spec destination(t(), binary()) :: {:ok, binary()} | :gone
  def destination(state, "/reply-queue/" <> name), do: existing(state, "/queue/" <> name)
  def destination(state, "/remote-temp-queue/" <> _id = name), do: existing(state, name)
  def destination(_state, other), do: {:ok, other}

  defp existing(state, name),
    do: if(name in Map.values(state.queues), do: {:ok, name}, else: :gone)

  @doc "The name by which this connection knows the destination of a message."
  @spec own(t(), pid(), binary()) :: binary()
  def own(state, connection, "/remote-temp-queue/" <> _id = name) do
    case Enum.find(state.queues, &match?({{^connection, _own}, ^name}, &1)) do
      {{_connection, own}, _name} -> own
      nil -> name
    end
  end

  def own(_state, _connection, name), do: name

  @doc "The queues of a connection end with it."
  @spec closed(t(), pid()) :: t()
  def closed(state, connection) do
    queues = Map.reject(state.queues, &match?({{^connection, _own}, _name}, &1))
    %{state | queues: queues}
  end

  @doc "The headers of a message, with another `reply-to`."
  @spec with_reply_to(Frame.frame_headers(), binary()) :: Frame.frame_headers()
  def with_reply_to(headers, name),
    do: List.keyreplace(headers, "reply-to", 0, {"reply-to", reply_to(name)})
end
