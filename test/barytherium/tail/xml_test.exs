defmodule Barytherium.Tail.XmlTest do
  use ExUnit.Case, async: true

  alias Barytherium.Tail.Xml

  defp indent(text) do
    with {:ok, lines} <- Xml.indent(text), do: IO.iodata_to_binary(lines)
  end

  test "a line for each tag, and elements that hold a text on one" do
    text =
      ~s(<?xml version="1.0"?><!-- a > b --><a x="1>2"><b>text</b><c/><d></d><e><f>1</f> more</e></a>)

    assert indent(text) == """
           <?xml version="1.0"?>
           <!-- a > b -->
           <a x="1>2">
             <b>text</b>
             <c/>
             <d></d>
             <e>
               <f>1</f>
               more
             </e>
           </a>
           """
  end

  test "blanks between tags do not count, and CDATA is kept" do
    assert indent("<a>\n\n  <b><![CDATA[<x>]]></b>\n</a>\n") ==
             "<a>\n  <b>\n    <![CDATA[<x>]]>\n  </b>\n</a>\n"
  end

  test "what is no XML is left alone" do
    for text <- ["<a>", "</a>", "<a></b>", "<a><b></a></b>", "a < b", "<a", "<a x=\"1></a>"],
        do: assert(indent(text) == :error, text)
  end

  test "the depth costs no more than the length" do
    deep = String.duplicate("<a>", 100_000) <> String.duplicate("</a>", 100_000)
    assert byte_size(indent(deep)) < 200_000 * (80 + 5)
  end
end
