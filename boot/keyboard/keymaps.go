package keyboard

// keymaps are those of xkeyboard-config 2.35 for keyboards that have Latin letters, which is
// what the commands of a console are written with. Each has for each key of us the character
// that it types alone, with shift, and with AltGr; a space is a key that types none. Dead keys
// type their accent.
var keymaps = []Keymap{
	{"us", "us", [3]string{
		"`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./<",
		"~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:\"ZXCVBNM<>?>",
		"`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./|",
	}},
	{"de", "de", [3]string{
		"^1234567890ß´qwertzuiopü+#asdfghjklöäyxcvbnm,.-<",
		"°!\"§$%&/()=?`QWERTZUIOPÜ*'ASDFGHJKLÖÄYXCVBNM;:_>",
		"′¹²³¼½¬{[]}\\¸@ſ€¶ŧ←↓→øþ¨~’æſðđŋħ ĸł ^»«¢„“”µ·…–|",
	}},
	{"at", "at", [3]string{
		"^1234567890ß´qwertzuiopü+#asdfghjklöäyxcvbnm,.-<",
		"°!\"§$%&/()=?`QWERTZUIOPÜ*'ASDFGHJKLÖÄYXCVBNM;:_>",
		"′¹²³¼½¬{[]}\\¸@ſ€¶ŧ←↓→øþ¨~’æſðđŋħ ĸł ^»«¢„“”µ·…–|",
	}},
	{"ch", "ch", [3]string{
		"§1234567890'^qwertzuiopü¨$asdfghjklöäyxcvbnm,.-<",
		"°+\"*ç%&/()=?`QWERTZUIOPè!£ASDFGHJKLéàYXCVBNM;:_>",
		"¬|@#¼½¬|¢]}´~@ſ€¶ŧ←↓→œþ[]}æßðđŋħ ĸł´{«»¢„“”µ•· \\",
	}},
	{"ch-fr", "ch(fr)", [3]string{
		"§1234567890'^qwertzuiopè¨$asdfghjkléàyxcvbnm,.-<",
		"°+\"*ç%&/()=?`QWERTZUIOPü!£ASDFGHJKLöäYXCVBNM;:_>",
		"¬|@#¼½¬|¢]}´~@ſ€¶ŧ←↓→œþ[]}æßðđŋħ ĸł´{«»¢„“”µ•· \\",
	}},
	{"fr", "fr", [3]string{
		"²&é\"'(-è_çà)=azertyuiop^$*qsdfghjklmùwxcvbn,;:!<",
		"~1234567890°+AZERTYUIOP¨£µQSDFGHJKLM%WXCVBN?./§>",
		"¬¹~#{[|`\\^@]}æ«€¶ŧ←↓→øþ¨¤`@ßðđŋħ ĸłµ^ł»¢„“”´•· |",
	}},
	{"bepo", "fr(bepo)", [3]string{
		"$\"«»()@+-/*=%bépoè^vdljzwçauie,ctsrnmàyx.k'qghfê",
		"#1234567890°`BÉPOÈ!VDLJZWÇAUIE;CTSRNMÀYX:K?QGHFÊ",
		"–—<>[]^±−÷×≠‰|´&œ`¡ ð ĳə ¸æù¨€’©þß®~¯\\{}…~¿°g† /",
	}},
	{"be", "be", [3]string{
		"²&é\"'(§è!çà)-azertyuiop^$µqsdfghjklmùwxcvbn,;:=<",
		"³1234567890°_AZERTYUIOP¨*£QSDFGHJKLM%WXCVBN?./+>",
		"¬|@#¼½^{[{}\\¸@ſ€¶ŧ←↓→œþ[]`æßðđŋħ ĸł´´«»¢„“”¸•·~\\",
	}},
	{"nl", "nl", [3]string{
		"@1234567890/°qwertyuiop¨*<asdfghjkl+´zxcvbnm,.-]",
		"§!\"#$%&_()'?~QWERTYUIOP^|>ASDFGHJKL±`ZXCVBNM;:=[",
		"¬¹²³¼½¾£{}°\\¸@ſ€¶þÿüïò¶~~`áßðªŋħ ĸł´'«»¢“”ñμ¸·\u00ad|",
	}},
	{"gb", "gb", [3]string{
		"`1234567890-=qwertyuiop[]#asdfghjkl;'zxcvbnm,./\\",
		"¬!\"£$%^&*()_+QWERTYUIOP{}~ASDFGHJKL:@ZXCVBNM<>?|",
		"|¹²³€½¾{[]}\\¸@ſe¶ŧ←↓→øþ¨~`æßðđŋħ ĸł´^«»¢„“”µ•· |",
	}},
	{"es", "es", [3]string{
		"º1234567890'¡qwertyuiop`+çasdfghjklñ´zxcvbnm,.-<",
		"ª!\"·$%&/()=?¿QWERTYUIOP^*ÇASDFGHJKLÑ¨ZXCVBNM;:_>",
		"\\|@#~½¬{[]}\\¸@ſ€¶ŧ←↓→øþ[]}æßðđŋħ ĸł~{«»¢„“”µ•· |",
	}},
	{"latam", "latam", [3]string{
		"|1234567890'¿qwertyuiop´+}asdfghjklñ{zxcvbnm,.-<",
		"°!\"#$%&/()=?¡QWERTYUIOP¨*]ASDFGHJKLÑ[ZXCVBNM;:_>",
		"¬|@·~½¬{[]}\\¸@ſ€¶ŧ←↓→øþ¨~`æßðđŋħ ĸł~^«»¢„“”µ•· \\",
	}},
	{"pt", "pt", [3]string{
		"\\1234567890'«qwertyuiop+´~asdfghjklçºzxcvbnm,.-<",
		"|!\"#$%&/()=?»QWERTYUIOP*`^ASDFGHJKLÇªZXCVBNM;:_>",
		"¬¹@£§½¬{[]}\\¸@ſ€¶ŧ←↓→øþ¨~`æßðđŋħ ĸł´^«»¢„“”µ•· \\",
	}},
	{"br", "br", [3]string{
		"'1234567890-=qwertyuiop´[]asdfghjklç~zxcvbnm,.;\\",
		"\"!@#$%¨&*()_+QWERTYUIOP`{}ASDFGHJKLÇ^ZXCVBNM<>:|",
		"¬¹²³£¢¬{[]}\\§/?°®ŧ←↓→øþ'ªºæßðđŋħ ĸł´~«»©„“”µ•·  ",
	}},
	{"it", "it", [3]string{
		"\\1234567890'ìqwertyuiopè+ùasdfghjklòàzxcvbnm,.-<",
		"|!\"£$%&/()=?^QWERTYUIOPé*§ASDFGHJKLç°ZXCVBNM;:_>",
		"¬¹²³¼½¬{[]}`~@ſ€¶ŧ←↓→øþ[]`æßðđŋħ ĸł@#«»¢“”ñµ´·¯«",
	}},
	{"ca", "ca", [3]string{
		"#1234567890-=qwertyuiop^¸<asdfghjkl;`zxcvbnm,.é«",
		"|!\"/$%?&*()_+QWERTYUIOP^¨>ASDFGHJKL:`ZXCVBNM'.É»",
		"\\±@£¢¤¬¦²³¼½¾qwertyui§¶[]}asdfghjkl~{zxcvbnµ¯\u00ad´°",
	}},
	{"dk", "dk", [3]string{
		"½1234567890+´qwertyuiopå¨'asdfghjklæøzxcvbnm,.-<",
		"§!\"#¤%&/()=?`QWERTYUIOPÅ^*ASDFGHJKLÆØZXCVBNM;:_>",
		"¾¡@£$½¥{[]}±|@ſ€®þ←↓→œþ¨~ ªßðđŋħ ĸł´^«»©„“”µ¸· \\",
	}},
	{"no", "no", [3]string{
		"|1234567890+\\qwertyuiopå¨'asdfghjkløæzxcvbnm,.-<",
		"§!\"#¤%&/()=?`QWERTYUIOPÅ^*ASDFGHJKLØÆZXCVBNM;:_>",
		"¦¡@£$½¥{[]}±´@ſ€®þ←↓→œπ¨~ ªßðđŋħ ĸł´^«»©„“”µ¸…–½",
	}},
	{"se", "se", [3]string{
		"§1234567890+´qwertyuiopå¨'asdfghjklöäzxcvbnm,.-<",
		"½!\"#¤%&/()=?`QWERTYUIOPÅ^*ASDFGHJKLÖÄZXCVBNM;:_>",
		"¶¡@£$€¥{[]}\\±@ſ€®þ←↓→œþ¨~'ªßðđŋħ ĸłøæ«»©„“”µ¸· |",
	}},
	{"fi", "se", [3]string{
		"§1234567890+´qwertyuiopå¨'asdfghjklöäzxcvbnm,.-<",
		"½!\"#¤%&/()=?`QWERTYUIOPÅ^*ASDFGHJKLÖÄZXCVBNM;:_>",
		"¶¡@£$€¥{[]}\\±@ſ€®þ←↓→œþ¨~'ªßðđŋħ ĸłøæ«»©„“”µ¸· |",
	}},
	{"is", "is", [3]string{
		"°1234567890ö-qwertyuiopð'+asdfghjklæ´zxcvbnm,.þ<",
		"¨!\"#$%&/()=Ö_QWERTYUIOPÐ?*ASDFGHJKLÆ´ZXCVBNM;:Þ>",
		"¬¹²³¼½¬{[]}\\¸@ſ€¶ŧ←↓→ø|¨~`æß„đŋħ ĸł^^«»¢„“”µ•· |",
	}},
	{"ee", "ee", [3]string{
		" 1234567890+´qwertyuiopüõ'asdfghjklöäzxcvbnm,.-<",
		"~!\"#¤%&/()=?`QWERTYUIOPÜÕ*ASDFGHJKLÖÄZXCVBNM;:_>",
		"¬¹@£$½¬{[]}\\`@ſ€¶ŧ←↓→øþ¨§½æšðđŋħ ĸł´^ž»¢„“”µ<>||",
	}},
	{"lv", "lv", [3]string{
		"`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./<",
		"~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:\"ZXCVBNM<>?>",
		"'¹²³€½¾{[]}\\–qwēŗtyūīōp«»`āšdfģhjķļ;“žxčvbņm•·/|",
	}},
	{"pl", "pl", [3]string{
		"`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./<",
		"~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:\"ZXCVBNM<>?>",
		"¬≠²³¢€½§·«»–¸πœę©ß←↓→óþ¨~`ąśðæŋ’ə…ł´^żźć„”ńµ≤≥ |",
	}},
	{"cz", "cz", [3]string{
		";+ěščřžýáíé=´qwertzuiopú)¨asdfghjklů§yxcvbnm,.-\\",
		"°1234567890% QWERTZUIOP/('ASDFGHJKL\"!YXCVBNM?:_|",
		"`!@#$%^&*{}\\¯\\|€¶ŧ←↓→øþ[]\\~đĐ[]`'łŁ$'°#&@{}^<>*/",
	}},
	{"cz-qwerty", "cz(qwerty)", [3]string{
		";+ěščřžýáíé=´qwertyuiopú)¨asdfghjklů§zxcvbnm,.-\\",
		"°1234567890% QWERTYUIOP/('ASDFGHJKL\"!ZXCVBNM?:_|",
		"`!@#$%^&*()\\¯\\|€¶ŧ←↓→øþ[]\\~đĐ[]`'łŁ;'°#&@{}^<>*/",
	}},
	{"sk", "sk", [3]string{
		";+ľščťžýáíé=´qwertzuiopúäňasdfghjklô§yxcvbnm,.-\\",
		"°1234567890% QWERTZUIOP/()ASDFGHJKL\"!YXCVBNM?:_|",
		"`!@#$%^&*{}\\¯\\|€¶ŧ←↓→øþ[]\\~đĐ[]`'łŁ$'°#&@{}^<>*/",
	}},
	{"hu", "hu", [3]string{
		"0123456789öüóqwertzuiopőúűasdfghjkléáyxcvbnm,.-í",
		"§'\"+!%/=()ÖÜÓQWERTZUIOPŐÚŰASDFGHJKLÉÁYXCVBNM?:_Í",
		"¬~ ^ ° `˙´ ¨¸\\|Ä¶ŧ–€Í„”÷×¤äđĐ[]ħíłŁ$ß>#&@{}<;>*<",
	}},
	{"ro", "ro", [3]string{
		"`1234567890-=qwertyuiop[]\\asdfghjkl;'zxcvbnm,./\\",
		"~!@#$%^&*()_+QWERTYUIOP{}|ASDFGHJKL:\"ZXCVBNM<>?|",
		"`~ ^ ° `˙´ ¨¸âß€rțyuîo§„”\\ășđfghjkł;'zx©vbnm«»/|",
	}},
	{"si", "si", [3]string{
		"¸1234567890'+qwertzuiopšđžasdfghjklčćyxcvbnm,.-<",
		"¨!\"#$%&/()=?*QWERTZUIOPŠĐŽASDFGHJKLČĆYXCVBNM;:_>",
		"¸~ ^ ° `˙´ ¨¸\\|€¶ŧ←↓→øþ÷×¤æ„“[]ħ łł´ß‘’¢@{}§<>—|",
	}},
	{"hr", "hr", [3]string{
		"`1234567890'+qwertzuiopšđžasdfghjklčćyxcvbnm,.-<",
		"~!\"#$%&/()=?*QWERTZUIOPŠĐŽASDFGHJKLČĆYXCVBNM;:_>",
		"¬~ ^ ° `˙´ ¨¸\\|€¶ŧ←↓→øþ÷×¤æ„”[]ħ łł´ß‘’¢@{}§<> |",
	}},
	{"rs-latin", "rs(latin)", [3]string{
		"`1234567890'+qwertzuiopšđžasdfghjklčćyxcvbnm,.-<",
		"~!\"#$%&/()=?*QWERTZUIOPŠĐŽASDFGHJKLČĆYXCVBNM;:_>",
		"¬~ ^ ° `˙´ ¨¸\\|€¶ŧ←↓→øþ÷×¤æ„“[]ħ łł´ß‘’¢@{}§<>—|",
	}},
	{"tr", "tr", [3]string{
		"\"1234567890*-qwertyuıopğü,asdfghjklşizxcvbnmöç.<",
		"é!'^+%&/()=?_QWERTYUIOPĞÜ;ASDFGHJKLŞİZXCVBNMÖÇ:>",
		"<>£#$½¾{[]}\\|@w€¶₺←ûîôp¨~`âßdªgh kl''«»¢„“”µ×·˙|",
	}},
	{"tr-f", "tr(f)", [3]string{
		"+1234567890/-fgğıodrnhpqwxuieaütkmlyşjövcçzsb.,<",
		"*!\"^$%&'()=?_FGĞIODRNHPQWXUİEAÜTKMLYŞJÖVCÇZSB:;>",
		"¬¹²#¼½¾{[]}\\|@gğ¶ô¥®n°£¨~`ûî€âû₺kµl'#«»“¢”z§×÷·|",
	}},
	{"dvorak", "us(dvorak)", [3]string{
		"`1234567890[]',.pyfgcrl/=\\aoeuidhtns-;qjkxbmwvz<",
		"~!@#$%^&*(){}\"<>PYFGCRL?+|AOEUIDHTNS_:QJKXBMWVZ>",
		"`12345^78`0[~´¸˙pyfgcrl/=\\aoeuidhtns- qjkxbmwvz|",
	}},
	{"dvorak-l", "us(dvorak-l)", [3]string{
		"`[]/pfmlj4321;qbyurso.65=\\-kcdtheaz87'xgvwni,09<",
		"~{}?PFMLJ$#@!:QBYURSO>^%+|_KCDTHEAZ*&\"XGVWNI<)(>",
		"`[]/pf^lj`32~´¸˙yurso.65=\\-kcdtheaz87 xgvwni,09|",
	}},
	{"dvorak-r", "us(dvorak-r)", [3]string{
		"`1234jlmfp/[]56q.orsuyb;=\\78zaehtdck-90x,inwvg'<",
		"~!@#$JLMFP?{}%^Q>ORSUYB:+|&*ZAEHTDCK_()X<INWVG\">",
		"`1234j^mf`/[~´¸˙.orsuyb;=\\78zaehtdck- 0x,inwvg'|",
	}},
	{"dvp", "us(dvp)", [3]string{
		"$&[{}(=*)+]!#;,.pyfgcrl/@\\aoeuidhtns-'qjkxbmwvz<",
		"~%7531902468`:<>PYFGCRL?^|AOEUIDHTNS_\"QJKXBMWVZ>",
		"~&¤¢¥€£*½`]¡`¨«»¶üfgç®l¿^\\åøæéið´þñß\u00ad´qjkxbmwvz|",
	}},
	{"colemak", "us(colemak)", [3]string{
		"`1234567890-=qwfpgjluy;[]\\arstdhneio'zxcvbkm,./-",
		"~!@#$%^&*()_+QWFPGJLUY:{}|ARSTDHNEIO\"ZXCVBKM<>?_",
		"~¡ºª¢€ħðþ‘’–×äåãø đłúüö«»~á`ß´¨ ñéíóõæ^çœ °¯¸˙¿–",
	}},
	{"colemak-dh", "us(colemak_dh)", [3]string{
		"`1234567890-=qwfpbjluy;[]\\arstgmneio'xcdvzkh,./z",
		"~!@#$%^&*()_+QWFPBJLUY:{}|ARSTGMNEIO\"XCDVZKH<>?Z",
		"~¡ºª¢€ħðþ‘’–×äåãø đłúüö«»~á`ß´ ¯ñéíóõ^ç¨œæ° ¸˙¿æ",
	}},
	{"workman", "us(workman)", [3]string{
		"`1234567890-=qdrwbjfup;[]\\ashtgyneoi'zxmcvkl,./<",
		"~!@#$%^&*()_+QDRWBJFUP:{}|ASHTGYNEOI\"ZXMCVKL<>?>",
		"`1234567890-=qdrwbjfup;[]\\ashtgyneoi'zxmcvkl,./|",
	}},
}
